"""Toy data: mixtures of Gaussians, whose best denoiser is known exactly, and a spiral.

A model of the grid of 25 Gaussians puts samples between the modes, where there are no data: Aithal et al.,
"Understanding Hallucinations in Diffusion Models through Mode Interpolation", arXiv 2406.09358.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class GaussianMixture:
    """A mixture of round Gaussians of equal size and probability.

    Attributes:
        means: of the modes, K tuples of D numbers.
        std: standard deviation of a mode in every direction.
    """

    means: tuple[tuple[float, ...], ...]
    std: float

    @property
    def dimensions(self) -> int:
        """D, the numbers of a sample."""
        return len(self.means[0])

    @cached_property
    def centres(self) -> Tensor:
        """The means as a tensor, (K, D) float64."""
        return torch.tensor(self.means, dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw samples.

        Args:
            n: how many.
            generator: on the CPU.

        Returns:
            (n, D) float32.
        """
        modes = torch.randint(len(self.means), (n,), generator=generator)
        noise = torch.randn(n, self.dimensions, generator=generator)
        return self.centres.float()[modes] + self.std * noise

    def posterior(self, x_t: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance of x_0 given x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.

        Args:
            x_t: (B, D).
            alpha_bar: (B,) or a single number, in (0, 1).

        Returns:
            E[x_0 | x_t], (B, D), and Var[x_0 | x_t] of each number, (B, D); both float64.
        """
        x = x_t.double()
        alpha_bar = alpha_bar.to(x).reshape(-1, 1)
        alpha, centres = alpha_bar.sqrt(), self.centres.to(x.device)
        # Within a mode, x_0 and x_t are jointly Gaussian.
        marginal = alpha_bar * self.std**2 + 1 - alpha_bar
        distances = (x[:, None] - alpha[..., None] * centres).square().sum(-1)
        weights = torch.softmax(-distances / (2 * marginal), dim=1)[..., None]
        gain = (alpha * self.std**2 / marginal)[..., None]
        means = centres + gain * (x[:, None] - alpha[..., None] * centres)
        mean = (weights * means).sum(1)
        between = (weights * (means - mean[:, None]).square()).sum(1)
        return mean, between + self.std**2 * (1 - alpha_bar) / marginal


def gaussian_grid(side: int = 5, *, std: float = 0.05) -> GaussianMixture:
    """A grid of `side` x `side` modes from -1 to 1; by default 25, ten standard deviations apart."""
    line = [2 * i / (side - 1) - 1 for i in range(side)]
    return GaussianMixture(tuple((x, y) for y in line for x in line), std)


def gaussian_line(modes: int = 3, *, std: float = 0.05) -> GaussianMixture:
    """Modes in one dimension, centred on 0 and half a unit apart."""
    return GaussianMixture(tuple(((i - (modes - 1) / 2) / 2,) for i in range(modes)), std)


def spiral(places: Tensor, *, turns: float = 1.5) -> Tensor:
    """Points of a spiral in the plane.

    Args:
        places: (B,) in [0, 1], from the inner end, at a tenth of the radius, to the outer end, at radius 1.
        turns: how often it goes around.

    Returns:
        (B, 2).
    """
    radius, angle = 0.1 + 0.9 * places, 2 * math.pi * turns * places
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=1)
