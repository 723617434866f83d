"""Tasks of `evaluate hallucination` on mixtures of Gaussians, whose distribution is known exactly."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn

from privgen.data.toys import GaussianMixture, gaussian_grid, gaussian_line
from privgen.evaluation.hallucination.methods import LOSSES, Denoise, SamplingMethod
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
"""A sample farther than this many standard deviations from every mode lies between modes, not in the tail of one."""
EVEN = 0.2
"""A mode is evenly represented if its fraction of the samples is within 20 % of 1 / K."""


@dataclass(frozen=True)
class Mixture(SamplingTask):
    """A mixture of Gaussians. A sample farther than 3 standard deviations from every mode is hallucinated.

    Attributes:
        training: of the networks.
    """

    methods: Mapping[str, SamplingMethod] = field(default_factory=lambda: dict(MIXTURE_METHODS))
    ours: Mapping[str, str] = field(default_factory=lambda: dict(MIXTURE_OURS))
    detector: HallucinationDetector = MIXTURE_DETECTOR
    training: ToyTraining = field(default_factory=ToyTraining)
    shown: ClassVar[int] = 2000
    chunk: ClassVar[int] = 2500

    @property
    @abstractmethod
    def mixture(self) -> GaussianMixture:
        """The distribution of the data."""

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
        """Coverage of the modes.

        Returns:
            "covered", "imbalance" and "spread" as in `ModeCoverage`, "even" (how many modes are evenly represented)
            and "interpolated" (the fraction of samples that lie between modes, where real data have none).
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
    """25 Gaussians on a grid in two dimensions."""

    name: ClassVar[str] = "grid"

    @property
    def mixture(self) -> GaussianMixture:
        return gaussian_grid()


@dataclass(frozen=True)
class Line(Mixture):
    """Three Gaussians on a line, in one dimension."""

    name: ClassVar[str] = "line"

    @property
    def mixture(self) -> GaussianMixture:
        return gaussian_line()
