"""The tasks of `evaluate hallucination` whose exact law is known: mixtures of Gaussians."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn

from privgen.data.toys import GaussianMixture, gaussian_grid, gaussian_line
from privgen.evaluation.hallucination.methods import LOSSES, Denoise, Method
from privgen.evaluation.hallucination.pictures import draw_points
from privgen.evaluation.hallucination.settings import MIXTURE_DETECTOR, MIXTURE_METHODS, MIXTURE_OURS
from privgen.evaluation.hallucination.task import SamplingTask
from privgen.evaluation.hallucination.train_toy import (
    ToyTraining,
    build_toy_network,
    toy_scheduler,
    train_toy,
    training_set,
)
from privgen.hallucination.detector import HallucinationDetector
from privgen.metrics.hallucination import Validation, mode_coverage, validate_mixture


INTERPOLATED = 5.0
"""Standard deviations from every mode at which a sample is between modes and not in a mode's tail."""
EVEN = 0.2
"""Deviation from 1 / K within which a mode has its share."""


@dataclass(frozen=True)
class Mixture(SamplingTask):
    """Gaussians; a sample farther than 3 standard deviations from every one is hallucinated.

    Attributes:
        training: of the networks.
    """

    methods: Mapping[str, Method] = field(default_factory=lambda: dict(MIXTURE_METHODS))
    ours: Mapping[str, str] = field(default_factory=lambda: dict(MIXTURE_OURS))
    detector: HallucinationDetector = MIXTURE_DETECTOR
    training: ToyTraining = field(default_factory=ToyTraining)
    shown: ClassVar[int] = 2000
    chunk: ClassVar[int] = 2500

    @property
    @abstractmethod
    def mixture(self) -> GaussianMixture:
        """The law of the data."""

    def trained_for(self, steps: int) -> Self:
        return replace(self, training=replace(self.training, steps=steps))

    def training_set(self, seed: int) -> Tensor:
        return training_set(self.mixture, self.training, seed=seed)

    def held_out(self, n: int, seed: int) -> Tensor:
        return self.mixture.sample(n, torch.Generator().manual_seed(seed + 2_000_003))

    def build(self, loss: str, seed: int) -> nn.Module:
        return build_toy_network(self.mixture.dimensions, replace(self.training, variance=LOSSES[loss]), seed=seed)

    def train(self, data: Tensor, loss: str, seed: int, plain: Callable[[], nn.Module]) -> nn.Module:
        return train_toy(data, replace(self.training, variance=LOSSES[loss]), seed=seed)

    def scheduler(self) -> DDPMScheduler:
        return toy_scheduler()

    def denoiser(self, network: nn.Module) -> Denoise:
        return lambda x, t: network(x, t).sample

    def validate(self, x: Tensor) -> Validation:
        return validate_mixture(x, self.mixture)

    def cover(self, x: Tensor, held_out: Tensor) -> dict[str, float]:
        """Modes and widths, see `ModeCoverage`.

        "even" counts modes whose share is within 20 % of 1 / K, "interpolated" is the share of samples farther than
        5 standard deviations from every mode, where real data have none.
        """
        between = {"interpolated": validate_mixture(x, self.mixture, radius=INTERPOLATED).fraction}
        if bool(self.validate(x).hallucinated.all()):
            return {"covered": 0.0, "even": 0.0, "imbalance": float("nan"), "spread": float("nan"), **between}
        modes = mode_coverage(x, self.mixture)
        even = (modes.fractions * len(modes.fractions) - 1).abs() <= EVEN
        counts = {"covered": float(modes.covered), "even": float(even.sum())}
        return {**counts, "imbalance": modes.imbalance, "spread": modes.spread, **between}

    def draw(self, samples: Mapping[str, Tensor]) -> Image.Image:
        return draw_points({name: (x, self.validate(x).hallucinated) for name, x in samples.items()})


@dataclass(frozen=True)
class Grid(Mixture):
    """25 of them, in two dimensions."""

    name: ClassVar[str] = "grid"

    @property
    def mixture(self) -> GaussianMixture:
        return gaussian_grid()


@dataclass(frozen=True)
class Line(Mixture):
    """Three of them, in one dimension."""

    name: ClassVar[str] = "line"

    @property
    def mixture(self) -> GaussianMixture:
        return gaussian_line()
