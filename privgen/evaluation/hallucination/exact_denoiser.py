"""The perfect denoiser of a Gaussian mixture: what the training of a network would end with."""

from typing import Any

import torch
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor, nn

from privgen.data.toys import GaussianMixture
from privgen.diffusion.parameterisation import NoiseLevel, predict_noise, prediction_target


class ExactDenoiser(nn.Module):
    """A network that returns the exact prediction, called as a Diffusers UNet is.

    Args:
        mixture: the data.
        scheduler: whose noise schedule and `prediction_type` it follows.
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
            timestep: one for all samples, or (B,). The noise level is interpolated between two timesteps.
            return_dict: return an output object; False returns a tuple.
            **conditions: not used.

        Returns:
            An output whose `sample` is (B, D), or (B, 2 D) with a learned variance.
        """
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1).expand(len(sample))
        alpha_bar = _interpolate(self.alphas_cumprod, t)
        original, variance = self.mixture.posterior(sample, alpha_bar)
        level = NoiseLevel.from_alpha_bar(alpha_bar[:, None])
        noise = predict_noise(original, sample, level, "sample")
        output = prediction_target(original, noise, level, self.prediction)
        if self.learn_variance:
            output = torch.cat([output, self._best_v(variance, t.long())], dim=1)
        output = output.to(sample.dtype)
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def _best_v(self, variance: Tensor, t: Tensor) -> Tensor:
        """The v in [-1, 1] that encodes the best reverse variance, beta~ + c^2 Var[x_0 | x_t]."""
        now, before = self.alphas_cumprod[t], self.alphas_cumprod[(t - 1).clamp_min(0)]
        beta = 1 - now / before
        beta_tilde = (1 - before) / (1 - now) * beta
        added = (before * (beta / (1 - now)).square())[:, None] * variance
        w = torch.log1p(added / beta_tilde[:, None]) / torch.log(beta / beta_tilde)[:, None]
        return torch.where((t == 0)[:, None], -torch.ones_like(w), (2 * w - 1).clamp(-1, 1))


def _interpolate(alphas_cumprod: Tensor, t: Tensor) -> Tensor:
    low = t.floor().long().clamp(0, len(alphas_cumprod) - 1)
    high = (low + 1).clamp_max(len(alphas_cumprod) - 1)
    return torch.lerp(alphas_cumprod[low], alphas_cumprod[high], (t - low).to(alphas_cumprod))
