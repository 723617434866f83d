"""What `evaluate training` compares: assignment methods, on which data and objectives, and for how long."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from privgen.errors import UsageError
from privgen.noise_assignment.assign import assign_noise, choose_method


@dataclass(frozen=True)
class AssignmentMethod:
    """How noise is assigned to the images of a batch.

    Attributes:
        kind: "vanilla" keeps the noise as drawn, "linear" permutes it, "knn" picks one of several for each image.
        candidates: how many noises "knn" picks from.
        within_labels: permute only among images with the same label.
        batches: how many batches are assigned together; their noise is drawn in advance.
    """

    kind: Literal["vanilla", "linear", "knn"]
    candidates: int = 4
    within_labels: bool = False
    batches: int = 1

    def assign(self, x_0: Tensor, noise: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """Assign noise to images, all (B, ...). The generator draws the candidates of "knn"."""
        if self.kind == "vanilla":
            return noise
        if self.kind == "knn":
            return assign_noise(x_0, noise, method="knn", candidates=self.candidates, generator=generator)
        return assign_noise(x_0, noise, method="linear", labels=labels if self.within_labels else None)


VANILLA = "vanilla"
METHODS: Mapping[str, AssignmentMethod] = {
    VANILLA: AssignmentMethod("vanilla"),
    "linear": AssignmentMethod("linear"),
    "within-label": AssignmentMethod("linear", within_labels=True),
    "knn-4": AssignmentMethod("knn", 4),
    "knn-16": AssignmentMethod("knn", 16),
    "knn-64": AssignmentMethod("knn", 64),
    "linear-pool": AssignmentMethod("linear", batches=8),
    "within-label-pool": AssignmentMethod("linear", within_labels=True, batches=8),
}
"""All methods by name. The pools assign 8 batches together, so that an image finds noise that is nearer."""
DEFAULT_METHODS = ("linear", "within-label", "knn-4", "knn-16", "knn-64")


@dataclass(frozen=True)
class TrainingSetting:
    """What a model learns, and how it samples.

    Attributes:
        data: "fashion" or "scenes".
        objective: "ddim" predicts the velocity of a noise schedule, "flow" the velocity of straight paths.
        sampling: numbers of sampling steps, each of which is measured, with DDIM or with Euler's method.
        betas: noise schedule of "ddim". "linear" is that of DDPM (arXiv 2006.11239); its last timestep keeps .006 of
            the image. "scaled_linear" is Stable Diffusion's, which keeps .068.
    """

    data: str
    objective: Literal["ddim", "flow"]
    sampling: tuple[int, ...]
    betas: Literal["linear", "scaled_linear"] = "scaled_linear"

    @property
    def conditional(self) -> bool:
        """Whether the model is conditioned on labels."""
        return self.data == "scenes"

    @property
    def sampler(self) -> str:
        """The name of the sampler."""
        return "ddim" if self.objective == "ddim" else "euler"


SETTINGS: Mapping[str, TrainingSetting] = {
    "fashion-ddim": TrainingSetting("fashion", "ddim", (10, 20, 50), "linear"),
    "fashion-flow": TrainingSetting("fashion", "flow", (5, 10, 20)),
    "scenes-ddim": TrainingSetting("scenes", "ddim", (10, 20)),
    "scenes-flow": TrainingSetting("scenes", "flow", (5, 10)),
    "fashion-ddim-scaled": TrainingSetting("fashion", "ddim", (10, 20, 50)),
}
"""All settings by name: the data, and the objective as `--objective` names it."""


def objective_of(setting: str) -> str:
    """The objective in the name of a setting, as `--objective` names it."""
    return setting.partition("-")[2]


@dataclass(frozen=True)
class RunOptions:
    """How long and how fast every model learns.

    The learning rate stays at its peak, and samples come from averaged weights. So every checkpoint is what a run of
    that length would have given.

    Attributes:
        steps: optimiser steps.
        batch_size: images in a step.
        learning_rate: of Muon, after the warm-up.
        warmup: steps over which the learning rate rises.
        ema_decay: of the averaged weights.
        samples: how many samples are judged at every checkpoint, for each number of sampling steps.
        checkpoints: fractions of the steps, ascending to 1.
        dtype: "float32", or "bfloat16" for the network's arithmetic on processors that support it.
    """

    steps: int = 400
    batch_size: int = 256
    learning_rate: float = 2e-3
    warmup: int = 20
    ema_decay: float = 0.98
    samples: int = 384
    checkpoints: tuple[float, ...] = (0.2, 0.35, 0.5, 0.7, 1.0)
    dtype: Literal["float32", "bfloat16"] = "float32"

    def measured_at(self) -> list[int]:
        """The steps after which samples are judged, ascending to the last one."""
        return sorted({max(1, round(fraction * self.steps)) for fraction in (*self.checkpoints, 1.0)})


@dataclass(frozen=True)
class Comparison:
    """Which methods are compared, on what, and from how many seeds.

    Attributes:
        data: "fashion", "scenes" or both.
        objectives: "ddim", "flow", and "ddim-scaled", which is Fashion-MNIST with Stable Diffusion's noise schedule.
        methods: names in `METHODS`. "vanilla", with which the others are compared, is always measured.
        seeds: runs of each method.
        first_seed: the seeds count up from here.

    Raises:
        UsageError: a name does not exist, or there is nothing to compare.
    """

    data: tuple[str, ...] = ("fashion", "scenes")
    objectives: tuple[str, ...] = ("ddim", "flow")
    methods: tuple[str, ...] = DEFAULT_METHODS
    seeds: int = 3
    first_seed: int = 0

    def __post_init__(self) -> None:
        for option, given, known in (
            ("data", self.data, {setting.data for setting in SETTINGS.values()}),
            ("objective", self.objectives, set(map(objective_of, SETTINGS))),
            ("method", self.methods, set(METHODS)),
        ):
            unknown = sorted(set(given) - known)
            if unknown or not given:
                what = f"--{option} {unknown[0]} does not exist" if unknown else f"There is no --{option}"
                raise UsageError(f"{what}; choose from {', '.join(sorted(known))}.")
        if self.seeds < 1:
            raise UsageError(f"--seeds is {self.seeds}; give at least 1, or at least 2 for intervals.")
        if all(run.method == VANILLA for run in self.runs()):
            raise UsageError("There is nothing to compare with vanilla; add --method linear, or data with labels.")

    def runs(self) -> list["PlannedRun"]:
        """All runs, seed by seed, so that an interrupted evaluation has equally many of every method.

        Methods that use labels are left out for data without labels.
        """
        methods = dict.fromkeys((VANILLA, *self.methods))
        return [
            PlannedRun(name, method, seed)
            for seed in range(self.first_seed, self.first_seed + self.seeds)
            for name, setting in SETTINGS.items()
            if setting.data in self.data and objective_of(name) in self.objectives
            for method in methods
            if setting.conditional or not METHODS[method].within_labels
        ]


@dataclass(frozen=True)
class PlannedRun:
    """One training.

    Attributes:
        setting: name in `SETTINGS`.
        method: name in `METHODS`.
        seed: of everything random.
    """

    setting: str
    method: str
    seed: int


def auto_method(classes: int, options: RunOptions, device: torch.device) -> str:
    """The name in `METHODS` of what `assign_noise` chooses by itself.

    Args:
        classes: number of labels; 0 without labels.
        options: with the batch size.
        device: where the batch is.
    """
    chosen = choose_method(options.batch_size // max(classes, 1), device)
    if chosen == "knn":
        return "knn-4"
    return "within-label" if classes else "linear"
