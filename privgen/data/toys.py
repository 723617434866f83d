"""Toy data whose density, score and best denoiser are known exactly.

A model of the grid of 25 Gaussians puts samples between the modes, where there are no data: Aithal et al.,
"Understanding Hallucinations in Diffusion Models through Mode Interpolation", arXiv 2406.09358.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn


@dataclass(frozen=True)
class GaussianMixture:
    """Equally likely, round Gaussians of one size.

    Attributes:
        means: of the modes, K tuples of D numbers.
        std: standard deviation of a mode in every direction.
    """

    means: tuple[tuple[float, ...], ...]
    std: float

    @property
    def dimensions(self) -> int:
        """D."""
        return len(self.means[0])

    @cached_property
    def centres(self) -> Tensor:
        """The means, (K, D) float64."""
        return torch.tensor(self.means, dtype=torch.float64)

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw from the mixture.

        Args:
            n: number of samples.
            generator: on the CPU.

        Returns:
            (n, D) float32.
        """
        modes = torch.randint(len(self.means), (n,), generator=generator)
        noise = torch.randn(n, self.dimensions, generator=generator)
        return self.centres.float()[modes] + self.std * noise

    def posterior(self, x_t: Tensor, alpha_bar: Tensor) -> tuple[Tensor, Tensor]:
        """What is known of x_0 from x_t = sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps.

        Args:
            x_t: (B, D).
            alpha_bar: (B,) or a single number, in (0, 1).

        Returns:
            E[x_0 | x_t], (B, D), and Var[x_0 | x_t] of each number, (B, D); float64.
        """
        x = x_t.double()
        alpha_bar = alpha_bar.to(x).reshape(-1, 1)
        alpha, centres = alpha_bar.sqrt(), self.centres.to(x.device)
        spread = alpha_bar * self.std**2 + 1 - alpha_bar
        distances = (x[:, None] - alpha[..., None] * centres).square().sum(-1)
        weights = torch.softmax(-distances / (2 * spread), dim=1)[..., None]
        # Within a mode everything is Gaussian.
        gain = (alpha * self.std**2 / spread)[..., None]
        means = centres + gain * (x[:, None] - alpha[..., None] * centres)
        mean = (weights * means).sum(1)
        between = (weights * (means - mean[:, None]).square()).sum(1)
        return mean, between + self.std**2 * (1 - alpha_bar) / spread

    def score(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """The gradient of log p_t at x_t by Tweedie's formula; arguments as for `posterior`.

        Returns:
            (B, D) float64.
        """
        mean, _ = self.posterior(x_t, alpha_bar)
        alpha_bar = alpha_bar.to(mean).reshape(-1, 1)
        return (alpha_bar.sqrt() * mean - x_t) / (1 - alpha_bar)

    def log_density(self, x_t: Tensor, alpha_bar: Tensor) -> Tensor:
        """Log p_t(x_t), (B,) float64; arguments as for `posterior`."""
        x, alpha_bar = x_t.double(), alpha_bar.to(torch.float64).reshape(-1, 1)
        spread = alpha_bar * self.std**2 + 1 - alpha_bar
        distances = (x[:, None] - alpha_bar.sqrt()[..., None] * self.centres).square().sum(-1)
        norm = self.dimensions / 2 * torch.log(2 * torch.pi * spread).squeeze(1)
        modes = torch.log(torch.tensor(len(self.means), dtype=torch.float64))
        return torch.logsumexp(-distances / (2 * spread), dim=1) - norm - modes


def gaussian_grid(side: int = 5, *, std: float = 0.05) -> GaussianMixture:
    """`side` x `side` modes from -1 to 1 in two dimensions; by default 25, ten standard deviations apart."""
    line = [2 * i / (side - 1) - 1 for i in range(side)]
    return GaussianMixture(tuple((x, y) for y in line for x in line), std)


def gaussian_line(modes: int = 3, *, std: float = 0.05) -> GaussianMixture:
    """Modes half a unit apart in one dimension, about 0."""
    return GaussianMixture(tuple(((i - (modes - 1) / 2) / 2,) for i in range(modes)), std)


class ExactDenoiser(nn.Module):
    """The network that training would end with: the exact prediction, called as a Diffusers UNet is.

    Args:
        mixture: the data.
        scheduler: whose noise schedule and `prediction_type` it serves.
        learn_variance: also return the best learned variance, as a network for `learned_range` does.
    """

    def __init__(self, mixture: GaussianMixture, scheduler: SchedulerMixin, *, learn_variance: bool = False) -> None:
        super().__init__()
        self.mixture, self.learn_variance = mixture, learn_variance
        self.prediction = scheduler.config.prediction_type
        self.alphas_cumprod: Tensor
        self.register_buffer("alphas_cumprod", scheduler.alphas_cumprod.double())

    def forward(
        self, sample: Tensor, timestep: Tensor | float, return_dict: bool = True, **conditions: Any
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict.

        Args:
            sample: x_t, (B, D), variance preserving.
            timestep: one for all, or (B,); in between two, the noise level is interpolated.
            return_dict: False returns a tuple.
            **conditions: are ignored.

        Returns:
            An output whose `sample` is (B, D), or (B, 2 D) with a learned variance.
        """
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        alpha_bar = _interpolated(self.alphas_cumprod, t)
        original, variance = self.mixture.posterior(sample, alpha_bar)
        alpha, sigma = alpha_bar.sqrt()[:, None], (1 - alpha_bar).sqrt()[:, None]
        noise = (sample - alpha * original) / sigma
        outputs = {"epsilon": noise, "sample": original, "v_prediction": alpha * noise - sigma * original}
        output = outputs[self.prediction]
        if self.learn_variance:
            output = torch.cat([output, self._best_v(variance, t.long())], dim=1)
        output = output.to(sample.dtype)
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def _best_v(self, variance: Tensor, t: Tensor) -> Tensor:
        """V of the reverse variance beta~ + c^2 Var[x_0 | x_t], within what [beta~, beta] can say."""
        now, before = self.alphas_cumprod[t], self.alphas_cumprod[(t - 1).clamp_min(0)]
        beta = 1 - now / before
        beta_tilde = (1 - before) / (1 - now) * beta
        added = (before * (beta / (1 - now)).square())[:, None] * variance
        share = torch.log1p(added / beta_tilde[:, None]) / torch.log(beta / beta_tilde)[:, None]
        return torch.where((t == 0)[:, None], -torch.ones_like(share), (2 * share - 1).clamp(-1, 1))


def _interpolated(alphas_cumprod: Tensor, t: Tensor) -> Tensor:
    low = t.floor().long().clamp(0, len(alphas_cumprod) - 1)
    high = (low + 1).clamp_max(len(alphas_cumprod) - 1)
    return torch.lerp(alphas_cumprod[low], alphas_cumprod[high], (t - low).to(alphas_cumprod))
