"""What protections push: the latents of images, and the loss of a personalised model on them."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privgen.diffusion.latents import encode
from privgen.diffusion.parameterisation import NoiseLevel, add_noise, predict_noise, prediction_target
from privgen.diffusion.unrolled_ddim import Schedule
from privgen.errors import UsageError
from privgen.models.family import family_of


@dataclass(frozen=True, eq=False)
class DenoisingTask:
    """What a text-to-image model learns when it is fine-tuned on images: to predict the noise in their latents.

    Attributes:
        unet: called as `unet(latents, timestep, encoder_hidden_states=...)`.
        vae: Diffusers' autoencoder.
        schedule: the model's noise schedule.
        prompt_embeds: (1, length, dim), of the prompt that goes with all images.
    """

    unet: Any
    vae: Any
    schedule: Schedule
    prompt_embeds: Tensor

    @classmethod
    @torch.no_grad()
    def of(cls, pipeline: Any, prompt: str = "") -> "DenoisingTask":
        """The task of a pipeline with one prompt.

        Args:
            pipeline: of the family of Stable Diffusion 1 and 2.
            prompt: what goes with all images.

        Raises:
            UsageError: the pipeline is of another family, or its scheduler has no alpha_bar.
        """
        if family_of(pipeline).name != "stable-diffusion":
            raise UsageError(
                f"This method works through the UNet of Stable Diffusion 1 or 2, and {type(pipeline).__name__} has "
                "none; use the methods shield or encoder, which need an autoencoder only."
            )
        embeds = pipeline.encode_prompt(prompt, pipeline.device, 1, False)[0]
        return cls(pipeline.unet, pipeline.vae, Schedule.of(pipeline.scheduler), embeds)

    def draw(self, latents: Tensor, generator: torch.Generator, *, low: float = 0, high: float = 1) -> "Draw":
        """Draw timesteps and noise for latents, from a generator on the CPU.

        Args:
            latents: (B, C, h, w).
            generator: of the draws.
            low: least timestep, as a fraction of the schedule.
            high: largest timestep, as a fraction of the schedule.
        """
        top = len(self.schedule.alphas)
        first, last = int(low * top), max(int(high * top), 1)
        t = torch.randint(first, last, (len(latents),), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        return Draw(t.to(latents.device), noise.to(latents))

    def output(self, latents: Tensor, draw: "Draw") -> Tensor:
        """What the UNet returns for noised latents, (B, C, h, w) float32."""
        noised = add_noise(latents, draw.noise, self.level(draw)).to(self.prompt_embeds.dtype)
        embeds = self.prompt_embeds.expand(len(latents), -1, -1)
        output: Tensor = self.unet(noised, draw.t, encoder_hidden_states=embeds, return_dict=False)[0]
        return output[:, : latents.shape[1]].float()  # a UNet that learnt variances has twice the channels

    def loss(self, latents: Tensor, draw: "Draw") -> Tensor:
        """The loss (B,) of fine-tuning: the mean squared error of the prediction (arXiv 2006.11239, equation 14)."""
        target = prediction_target(latents, draw.noise, self.level(draw), self.schedule.prediction_type)
        return (self.output(latents, draw) - target).square().mean(dim=(1, 2, 3))

    def noise_error(self, latents: Tensor, draw: "Draw") -> Tensor:
        """Predicted minus true noise, (B, C, h, w): the gradient of score distillation (arXiv 2209.14988)."""
        level = self.level(draw)
        noised = add_noise(latents, draw.noise, level)
        predicted = predict_noise(self.output(latents, draw), noised, level, self.schedule.prediction_type)
        return predicted - draw.noise

    def level(self, draw: "Draw") -> NoiseLevel:
        """How much noise the draw adds."""
        alphas = self.schedule.alphas.to(draw.t.device)[draw.t]
        return NoiseLevel.from_alpha_bar(alphas[:, None, None, None])


@dataclass(frozen=True, eq=False)
class Draw:
    """Random numbers of one evaluation of the loss.

    Attributes:
        t: (B,) training timesteps.
        noise: (B, C, h, w).
    """

    t: Tensor
    noise: Tensor


def latent_distance(vae: Any, pixels: Tensor, goal: Tensor) -> Tensor:
    """How far the latents of images lie from others, (B,): the mean squared distance.

    Args:
        vae: Diffusers' autoencoder.
        pixels: (B, 3, H, W) in [0, 1], on its device.
        goal: (B, C, h, w), scaled latents.
    """
    return (encode(vae, pixels) - goal).square().mean(dim=(1, 2, 3))
