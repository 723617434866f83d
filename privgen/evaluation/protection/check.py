"""The small study for your own photographs: does the protection hold on this model?"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from privgen.errors import PrivgenError, UsageError
from privgen.evaluation.protection.evaluate import evaluate_protection
from privgen.evaluation.protection.plan import StudyPlan
from privgen.evaluation.protection.subjects import FEWEST, photo_subject
from privgen.evaluation.protection.summary import Setting
from privgen.hub import model_label
from privgen.io.files import iter_image_files
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
    photographs = can_check(images)
    folder = None if output is None else Path(output) / FOLDER
    plan = StudyPlan("quick", seed, (method,), psnr=psnr, longest=longest)
    found = evaluate_protection(surrogate, plan, subjects=[photo_subject(photographs, "photographs")], folder=folder)
    if folder is not None:
        found.save(folder, overwrite=True)
    model = model_label(surrogate.model)
    text = found.sentence(Setting(model, "lora", method.name))
    if model == "mini":
        text += " mini hides faint changes; a model in the latents that you expect (--model, --vae) says more."
    return text


def can_check(images: Sequence[str | os.PathLike[str]]) -> list[Path]:
    """The image files among files and folders, if there are enough of them and the adversary can train.

    Raises:
        UsageError: too few images.
        PrivgenError: the package peft is missing.
    """
    found = iter_image_files(images)
    if len(found) < FEWEST:
        raise UsageError(f"--check needs at least {FEWEST} images of one subject, and there are {len(found)}.")
    if find_spec("peft") is None:
        raise PrivgenError('--check needs the package peft; install it with pip install "privgen[adversaries]".')
    return found
