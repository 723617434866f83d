"""How well marks of objects are written and found, in generated scenes and in photographs."""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from privgen.data.scenes import sample_spec
from privgen.diffusion.sampling import silent
from privgen.environment import Environment, environment
from privgen.evaluation.objects.carriers import compare_carriers
from privgen.evaluation.objects.cases import GUIDANCE, SCENES, STEPS, CaseSource, PhotographSource, SceneSource
from privgen.evaluation.objects.log import Log
from privgen.evaluation.objects.run import SEARCHED_EVERY, STRANGERS, measure
from privgen.evaluation.objects.summary import Scores, of_photographs, of_scenes
from privgen.evaluation.record import Report
from privgen.evaluation.text_to_image.autoencoder import heldout_photos
from privgen.evaluation.watermark.generation import draw_keys
from privgen.evaluation.workers import Processes
from privgen.io.files import iter_image_files
from privgen.watermark.objects.in_pipeline import marking_objects
from privgen.watermark.objects.keys import ObjectKeys


_TIMED = 3


@dataclass(frozen=True)
class ObjectsPlan:
    """What is measured, and on how much.

    Attributes:
        n: scenes of each setting.
        seed: of scenes, keys, noise and places.
        photographs: how many photographs; 0 leaves them out.
        photo_folder: of photographs; None is the packaged held-out ones.
        carriers: scenes of each setting that every carrier marks, so that they can be compared; 0 leaves them out.

    Raises:
        ValueError: n below 2, or fewer photographs or scenes than none.
    """

    n: int = 20
    seed: int = 0
    photographs: int = 20
    photo_folder: Path | None = None
    carriers: int = 0

    def __post_init__(self) -> None:
        if self.n < 2:
            raise ValueError(f"expected n of at least 2, got {self.n}")
        if self.photographs < 0:
            raise ValueError(f"expected 0 photographs or more, got {self.photographs}")
        if self.carriers < 0:
            raise ValueError(f"expected 0 scenes or more for the carriers, got {self.carriers}")


@dataclass(frozen=True)
class ObjectsEvaluation(Report):
    """What was measured of marks of objects.

    Attributes:
        settings: n, seed and the like.
        scenes: scores of each setting of generated scenes.
        photographs: scores of each setting of photographs; empty if there are none.
        time_ratio: how long generating with two marked objects takes, as a multiple of generating without.
        environment: versions and devices.
        carriers: scores of scenes that each carrier has marked at one quality, by carrier and setting; empty if none
            were compared.
    """

    settings: dict[str, Any]
    scenes: dict[str, Scores]
    photographs: dict[str, Scores]
    time_ratio: float
    environment: Environment
    carriers: dict[str, dict[str, Scores]] = field(default_factory=dict)

    def figures(self) -> dict[str, Any]:
        """Everything that was measured, by name."""
        return {
            **self.settings,
            "scenes": self.scenes,
            "photographs": self.photographs,
            "carriers": self.carriers,
            "time_ratio": self.time_ratio,
        }


def evaluate_objects(
    pipe: Any,
    plan: ObjectsPlan | None = None,
    *,
    folder: Path | None = None,
    processes: Processes | None = None,
) -> ObjectsEvaluation:
    """Measure marks of objects.

    Each object has a random key of its own. Scenes are drawn and then redrawn by mini, so that their exact masks are
    known; the marks are written where attention says. Settings are scenes with one, two and three objects, and
    with two of which one covers the other in part (`overlap`); half of the area of scenes with one object
    (`crop_half`); and its object, pasted into another image at .7 to 1.4 of its size (`pasted`). Photographs have
    two or three elliptic masks of 5 to 30 %, and results by area. All are also read after JPEG 75.

    Args:
        pipe: mini.
        plan: what is measured, and on how much.
        folder: where what was measured of each image is kept. An interrupted run goes on from there, and a larger n
            computes only what is new. None keeps nothing.
        processes: those that share the work; None is this one alone.

    Returns:
        The same in every process, but for `time_ratio` and `carriers`, which only the first measures.

    Raises:
        PrivgenError: a photograph or the log cannot be read, or the folder holds no photographs.
    """
    plan, shared = plan or ObjectsPlan(), processes or Processes()
    sources: list[tuple[CaseSource, int]] = [(SceneSource(pipe, name, plan.seed), plan.n) for name in SCENES]
    if plan.photographs:
        paths = iter_image_files([plan.photo_folder or heldout_photos()])
        sources.append((PhotographSource(paths, plan.seed), plan.photographs))
    rows = measure(sources, plan.seed, Log(folder, shared.rank), shared)
    settings = {
        "n": plan.n,
        "seed": plan.seed,
        "strangers": STRANGERS,
        "strangers_searched_every": SEARCHED_EVERY,
        "n_photographs": plan.photographs,
        "n_carriers": plan.carriers,
    }
    ratio = time_ratio(pipe) if shared.is_main else 0.0
    carriers = compare_carriers(pipe, plan.carriers, plan.seed) if plan.carriers and shared.is_main else {}
    return ObjectsEvaluation(settings, of_scenes(rows), of_photographs(rows), ratio, environment(), carriers)


def time_ratio(pipe: Any) -> float:
    """How long it takes to generate with two marked objects, as a multiple of generating without.

    The shortest of several runs each, in turn. On the CPU, processor time counts, so that other programs do not.
    """
    clock = time.process_time if torch.device(pipe.device).type == "cpu" else time.perf_counter
    spec = sample_spec(0, count=2, patterned=False, textured=False)
    keys = draw_keys(2, torch.Generator().manual_seed(0), "timed")
    owners = ObjectKeys({item.noun: key for item, key in zip(spec.objects, keys, strict=True)})

    def seconds() -> float:
        start = clock()
        with silent(pipe):
            pipe(spec.caption, num_inference_steps=STEPS, guidance_scale=GUIDANCE, output_type="pt")
        return clock() - start

    seconds()
    plain, marked = [], []
    for _ in range(_TIMED):
        plain.append(seconds())
        with marking_objects(pipe, owners):
            marked.append(seconds())
    return min(marked) / min(plain)
