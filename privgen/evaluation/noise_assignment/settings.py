"""What `evaluate training` compares: ways to assign noise, on which data and objectives, and how long."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from privgen.noise_assignment.assign import assign_noise, choose_method


@dataclass(frozen=True)
class Method:
    """How noise is given to images.

    Attributes:
        kind: "vanilla" leaves it as drawn, "linear" permutes it, "knn" picks for every image.
        candidates: of "knn".
        within_labels: permute within labels only.
        batches: how many batches are assigned at once; their noise is drawn ahead.
    """

    kind: Literal["vanilla", "linear", "knn"]
    candidates: int = 4
    within_labels: bool = False
    batches: int = 1

    def assign(self, x_0: Tensor, noise: Tensor, labels: Tensor | None, generator: torch.Generator) -> Tensor:
        """Noise for images; all (B, ...), `generator` draws the candidates."""
        if self.kind == "vanilla":
            return noise
        if self.kind == "knn":
            return assign_noise(x_0, noise, method="knn", candidates=self.candidates, generator=generator)
        return assign_noise(x_0, noise, method="linear", labels=labels if self.within_labels else None)


VANILLA = "vanilla"
METHODS: Mapping[str, Method] = {
    VANILLA: Method("vanilla"),
    "linear": Method("linear"),
    "within-label": Method("linear", within_labels=True),
    "knn-4": Method("knn", 4),
    "knn-16": Method("knn", 16),
    "knn-64": Method("knn", 64),
    "linear-pool": Method("linear", batches=8),
    "within-label-pool": Method("linear", within_labels=True, batches=8),
}
"""By name. The pools assign 8 batches at once, so that an image finds a nearer noise."""


@dataclass(frozen=True)
class Setting:
    """What is learned and how it is sampled.

    Attributes:
        data: "fashion" or "scenes".
        objective: "ddim" predicts the velocity of a noise schedule, "flow" that of straight paths.
        sampling: numbers of sampling steps, each of which is measured: DDIM's or Euler's.
        betas: the noise schedule of "ddim": "linear" is that of DDPM (arXiv 2006.11239), which ends in noise but for
            .006 of the image; "scaled_linear" is Stable Diffusion's, which leaves .068 of it.
    """

    data: str
    objective: Literal["ddim", "flow"]
    sampling: tuple[int, ...]
    betas: Literal["linear", "scaled_linear"] = "scaled_linear"

    @property
    def conditional(self) -> bool:
        """Whether models are conditioned on labels."""
        return self.data == "scenes"

    @property
    def sampler(self) -> str:
        """Its name."""
        return "ddim" if self.objective == "ddim" else "euler"


SETTINGS: Mapping[str, Setting] = {
    "fashion-ddim": Setting("fashion", "ddim", (10, 20, 50), "linear"),
    "fashion-flow": Setting("fashion", "flow", (5, 10, 20)),
    "scenes-ddim": Setting("scenes", "ddim", (10, 20)),
    "scenes-flow": Setting("scenes", "flow", (5, 10)),
    "fashion-ddim-scaled": Setting("fashion", "ddim", (10, 20, 50)),
}
"""By name: the data and what `--objective` calls it."""


def objective_of(name: str) -> str:
    """What `--objective` calls a setting of this name."""
    return name.partition("-")[2]


@dataclass(frozen=True)
class RunOptions:
    """How long and how fast to learn; the same for every method.

    The learning rate stays at its peak, and samples are drawn from averaged weights, so that every checkpoint is
    what a run of that length would have given.

    Attributes:
        steps: optimiser steps.
        batch_size: images a step.
        learning_rate: of Muon, after the warm-up.
        warmup: steps.
        ema_decay: of the averaged weights.
        samples: drawn by every sampler at every checkpoint.
        checkpoints: shares of the steps, ascending to 1.
        dtype: "float32", or "bfloat16" for the network's arithmetic where the processor has it.
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
        """Steps after which samples are judged, ascending, the last one among them."""
        return sorted({max(1, round(share * self.steps)) for share in (*self.checkpoints, 1.0)})


def auto_method(classes: int, options: RunOptions, device: torch.device) -> str:
    """The name in `METHODS` of what `assign_noise` does by itself with labels of so many classes; 0 is without."""
    chosen = choose_method(options.batch_size // max(classes, 1), device)
    if chosen == "knn":
        return "knn-4"
    return "within-label" if classes else "linear"
