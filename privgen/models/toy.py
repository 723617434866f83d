"""A small denoiser for points instead of images."""

import math
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn


class ToyDenoiser(ModelMixin, ConfigMixin):
    """A multilayer perceptron over random Fourier features (arXiv 2006.10739) with the interface of a Diffusers UNet.

    Args:
        dimensions: numbers of a sample.
        width: of the hidden layers.
        layers: how many hidden layers.
        learn_variance: return twice the numbers, for `variance_type` learned_range; the second half is in (-1, 1).
    """

    @register_to_config
    def __init__(self, dimensions: int, width: int, layers: int, learn_variance: bool = False) -> None:
        super().__init__()
        frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 4) / (width // 4))
        self.frequencies: Tensor
        self.register_buffer("frequencies", frequencies, persistent=False)
        # The factor 4 resolves details that are much finer than the extent of the data.
        self.directions: Tensor
        self.register_buffer("directions", 4 * torch.randn(dimensions, width // 4))
        self.enter = nn.Linear(dimensions + 2 * (width // 4), width)
        self.time = nn.Sequential(nn.Linear(2 * len(frequencies), width), nn.SiLU(), nn.Linear(width, width))
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.leave = nn.Linear(width, dimensions * (2 if learn_variance else 1))

    def forward(
        self, sample: Tensor, timestep: Tensor | float, return_dict: bool = True, **conditions: Any
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict what the network was trained to predict, such as noise.

        Args:
            sample: x_t, (B, D).
            timestep: one for all samples, or (B,), on a scale of 1000 timesteps.
            return_dict: return an output object; False returns a tuple.
            **conditions: not used.

        Returns:
            An output whose `sample` is (B, D), or (B, 2 D) with a learned variance.
        """
        t = torch.as_tensor(timestep, device=sample.device).reshape(-1, 1).to(sample.dtype)
        phases = t * self.frequencies
        time = self.time(torch.cat([phases.sin(), phases.cos()], dim=1))
        waves = sample @ self.directions
        x = self.enter(torch.cat([sample, waves.sin(), waves.cos()], dim=1))
        for layer in self.hidden:
            x = x + layer(nn.functional.silu(x + time))
        output = self.leave(nn.functional.silu(x))
        if self.config["learn_variance"]:
            prediction, variance = output.chunk(2, dim=1)
            output = torch.cat([prediction, variance.tanh()], dim=1)
        return UNet2DOutput(sample=output) if return_dict else (output,)
