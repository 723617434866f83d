"""The small study for your own photographs: does the protection hold on this model?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from privgen.evaluation.protection.evaluate import evaluate_protection
from privgen.evaluation.protection.plan import StudyPlan
from privgen.evaluation.protection.subjects import photo_subject
from privgen.evaluation.protection.summary import Setting
from privgen.hub import model_label
from privgen.protection.method import PSNR, Method
from privgen.protection.surrogate import Surrogate


FOLDER = "check"
"""The folder of the study, in the folder of the protected images."""


def check_protection(
    images: Sequence[str | os.PathLike[str]],
    method: Method,
    surrogate: Surrogate,
    *,
    psnr: float = PSNR,
    seed: int = 0,
    longest: int | None = None,
    output: str | os.PathLike[str] | None = None,
) -> str:
    """Train an adversary on photographs with and without a protection, and say what the protection changed.

    It takes minutes for a small model, and much longer for a large one without a GPU.

    Args:
        images: image files of one subject, and folders of them.
        method: the protection.
        surrogate: the model to personalise.
        psnr: of the protected images, in dB.
        seed: of all randomness.
        longest: training steps of the longest training; None is what suits the model.
        output: where the study's log, record and page go, in the folder `FOLDER`; None writes nothing.

    Returns:
        A sentence or two, such as "To learn this subject an adversary needs about 1.4 times the steps".

    Raises:
        UsageError: too few images.
        PrivgenError: an image or a model cannot be read, or the package peft is missing.
    """
    folder = None if output is None else Path(output) / FOLDER
    plan = StudyPlan("quick", seed, (method,), psnr=psnr, longest=longest)
    found = evaluate_protection(surrogate, plan, subjects=[photo_subject(images, "photographs")], folder=folder)
    if folder is not None:
        found.save(folder, overwrite=True)
    return found.sentence(Setting(model_label(surrogate.model), "lora", method.name))
