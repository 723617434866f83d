"""How well marks of objects are written and found, in generated scenes and in photographs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from privgen.data.scenes import sample_spec
from privgen.diffusion.sampling import silent
from privgen.environment import Environment, environment
from privgen.evaluation.intervals import Measured
from privgen.evaluation.objects.cases import (
    AREAS,
    GUIDANCE,
    STEPS,
    Case,
    heldout_specs,
    photograph_cases,
    scene_cases,
)
from privgen.evaluation.objects.readings import Reading, crop_half, jpeg, pasted, read, scores, write_scores
from privgen.evaluation.record import Report
from privgen.evaluation.text_to_image.autoencoder import heldout_photos
from privgen.evaluation.watermark.generation import draw_keys
from privgen.io.files import iter_image_files
from privgen.watermark.key import Key
from privgen.watermark.objects.in_pipeline import marking_objects
from privgen.watermark.objects.keys import ObjectKeys


SCENES = ("one_object", "two_objects", "three_objects", "overlap")
"""Settings of scenes that are read as they are, and after JPEG 75; see `evaluate_objects` for the others."""
STRANGERS = 5
"""Keys that own nothing, with which each image is compared too."""
_TIMED = 3

Scores = dict[str, Measured | None]


@dataclass(frozen=True)
class ObjectsPlan:
    """What is measured, and on how much.

    Attributes:
        n: scenes of each setting.
        seed: of scenes, keys, noise and places.
        photographs: how many photographs; 0 leaves them out.
        folder: of photographs; None is the packaged held-out ones.

    Raises:
        ValueError: n below 2.
    """

    n: int = 20
    seed: int = 0
    photographs: int = 20
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"expected n of at least 2, got {self.n}")


@dataclass(frozen=True)
class ObjectsEvaluation(Report):
    """What was measured of marks of objects.

    Attributes:
        settings: n, seed and the like.
        scenes: scores of each setting of generated scenes.
        photographs: scores of each setting of photographs; empty if there are none.
        time_ratio: how long generating with two marked objects takes, as a multiple of generating without.
        environment: versions and devices.
    """

    settings: dict[str, Any]
    scenes: dict[str, Scores]
    photographs: dict[str, Scores]
    time_ratio: float
    environment: Environment

    def figures(self) -> dict[str, Any]:
        """Everything that was measured, by name."""
        return {
            **self.settings,
            "scenes": self.scenes,
            "photographs": self.photographs,
            "time_ratio": self.time_ratio,
        }


def evaluate_objects(pipe: Any, plan: ObjectsPlan | None = None) -> ObjectsEvaluation:
    """Measure marks of objects.

    Each object has a random key of its own. Scenes are drawn and then redrawn by mini, so that their exact masks are
    known; the marks are written where attention says. Settings are scenes with one, two and three objects, and
    with two of which one covers the other in part (`overlap`); half of the area of scenes with one object
    (`crop_half`); and its object, pasted into another image at .7 to 1.4 of its size (`pasted`). Photographs have
    two or three elliptic masks of 5 to 30 %, and results by area. All are also read after JPEG 75.

    Args:
        pipe: mini.
        plan: what is measured, and on how much.

    Raises:
        PrivgenError: a photograph cannot be read, or the folder holds none.
    """
    plan = plan or ObjectsPlan()
    strangers = draw_keys(STRANGERS, torch.Generator().manual_seed(plan.seed + 1), "stranger")
    found: dict[str, Scores] = {}
    ones: list[Case] = []
    for setting in SCENES:
        cases = list(scene_cases(pipe, heldout_specs(setting, plan.n, plan.seed), plan.seed))
        ones = cases if setting == "one_object" else ones
        written = write_scores(cases)
        found[setting] = {**scores(_as_is(cases, strangers, compressed=False)), **written}
        found[f"{setting}_jpeg_75"] = scores(_as_is(cases, strangers, compressed=True))
    found |= _moved(ones, strangers, plan.seed)
    photographs: dict[str, Scores] = {}
    if plan.photographs:
        paths = iter_image_files([plan.folder or heldout_photos()])
        chosen = [
            paths[i] for i in np.linspace(0, len(paths) - 1, min(plan.photographs, len(paths))).round().astype(int)
        ]
        photographs = _of_photographs(
            list(photograph_cases(chosen, plan.photographs, plan.seed)), strangers, plan.seed
        )
    settings = {"n": plan.n, "seed": plan.seed, "strangers": STRANGERS, "n_photographs": plan.photographs}
    return ObjectsEvaluation(settings, found, photographs, time_ratio(pipe), environment())


def _as_is(cases: Sequence[Case], strangers: Sequence[Key], *, compressed: bool) -> list[Reading]:
    images = [jpeg(case.marked) if compressed else case.marked for case in cases]
    return [read(image, case.truth, case.keys, strangers) for image, case in zip(images, cases, strict=True)]


def _moved(cases: Sequence[Case], strangers: Sequence[Key], seed: int) -> dict[str, Scores]:
    """The settings in which the first object is not where it was marked."""
    rng = np.random.Generator(np.random.PCG64(seed))
    cropped = [crop_half(case.marked, case.truth, rng) for case in cases]
    moved = [pasted(case, cases[i - 1].plain, rng) for i, case in enumerate(cases)]
    found: dict[str, Scores] = {}
    for suffix, change in (("", lambda image: image), ("_jpeg_75", jpeg)):
        found[f"crop_half{suffix}"] = scores(
            [
                read(change(image), truth, case.keys, strangers, search=True)
                for (image, truth), case in zip(cropped, cases, strict=True)
            ]
        )
        found[f"pasted{suffix}"] = scores(
            [
                read(change(image), None, case.keys[:1], strangers, search=True)
                for image, case in zip(moved, cases, strict=True)
            ]
        )
    return found


def _of_photographs(cases: Sequence[Case], strangers: Sequence[Key], seed: int) -> dict[str, Scores]:
    found: dict[str, Scores] = {}
    for suffix in ("", "_jpeg_75"):
        readings = _as_is(cases, strangers, compressed=bool(suffix))
        for count, setting in ((2, "two_objects"), (3, "three_objects")):
            some = [i for i, case in enumerate(cases) if len(case.keys) == count]
            if some:
                written = {} if suffix else write_scores([cases[i] for i in some])
                found[f"{setting}{suffix}"] = {**scores([readings[i] for i in some]), **written}
        for area in AREAS:
            parts = [part for reading in readings if (part := reading.of_area(area)).matches]
            if parts:
                found[f"area_{area:.0%}{suffix}".replace("%", "")] = scores(parts)
    rng = np.random.Generator(np.random.PCG64(seed))
    moved = [pasted(case, cases[i - 1].plain, rng) for i, case in enumerate(cases)]
    readings = [
        read(image, None, case.keys[:1], strangers, search=True) for image, case in zip(moved, cases, strict=True)
    ]
    return {**found, "pasted": scores(readings)}


def time_ratio(pipe: Any) -> float:
    """How long it takes to generate with two marked objects, as a multiple of generating without."""
    spec = sample_spec(0, count=2, patterned=False, textured=False)
    keys = draw_keys(2, torch.Generator().manual_seed(0), "timed")
    owners = ObjectKeys({item.noun: key for item, key in zip(spec.objects, keys, strict=True)})

    def seconds() -> float:
        start = time.perf_counter()
        with silent(pipe):
            pipe(spec.caption, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="pt")
        return time.perf_counter() - start

    seconds()
    plain, marked = [], []
    for _ in range(_TIMED):
        plain.append(seconds())
        with marking_objects(pipe, owners):
            marked.append(seconds())
    return median(marked) / median(plain)
