"""Differentiable sampling: a few deterministic denoising steps between any timesteps, and the decoder.

DDIM without noise ("Denoising Diffusion Implicit Models", arXiv 2010.02502, equation 12 with sigma = 0), for models
that predict noise, the clean sample, or velocity.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from privgen.diffusion.latents import decode
from privgen.diffusion.parameterisation import (
    NoiseLevel,
    Prediction,
    add_noise,
    predict_noise,
    predict_original,
)
from privgen.errors import UsageError


@dataclass(frozen=True, eq=False)
class Schedule:
    """The noise schedule of a scheduler.

    Attributes:
        alphas: (T,) float32, alpha_bar of every training timestep, on the CPU.
        clean: alpha_bar at the end of denoising, 1 or nearly 1.
        prediction_type: "epsilon", "sample" or "v_prediction".
    """

    alphas: Tensor
    clean: float
    prediction_type: Prediction

    @classmethod
    def of(cls, scheduler: Any) -> "Schedule":
        """Return the noise schedule of a Diffusers scheduler.

        Args:
            scheduler: a scheduler of the DDPM family, with any solver.

        Raises:
            UsageError: the scheduler has no alpha_bar (flow matching), or another prediction type.
        """
        kind = scheduler.config.get("prediction_type", "epsilon")
        if not hasattr(scheduler, "alphas_cumprod") or kind not in ("epsilon", "sample", "v_prediction"):
            raise UsageError(
                "Tokens, marks and protections can be optimised through schedulers of the DDPM family, not through "
                f"{type(scheduler).__name__} with {kind} prediction; use a Stable Diffusion 1 or 2 model."
            )
        ddim = DDIMScheduler.from_config(scheduler.config)
        return cls(ddim.alphas_cumprod.float(), float(ddim.final_alpha_cumprod), kind)

    def alpha(self, timestep: int | None) -> float:
        """Return alpha_bar of a training timestep; None is the end of denoising."""
        return self.clean if timestep is None else float(self.alphas[timestep])

    def timestep(self, tau: float) -> int:
        """Return the training timestep, at least 1, of a timestep on the scale of 1000."""
        top = len(self.alphas)
        return min(max(round(tau * top / 1000), 1), top - 1)


@dataclass(frozen=True, eq=False)
class UnrolledDDIM:
    """DDIM sampling, through which gradients flow, with a frozen conditional model and classifier-free guidance.

    Attributes:
        unet: called as `unet(latents, timestep, encoder_hidden_states=...)`.
        schedule: its noise schedule.
        guidance_scale: as in Diffusers; 1 or less is no guidance, and halves the evaluations.
        checkpointing: recompute activations of the model in the backward pass, which saves memory.
    """

    unet: Any
    schedule: Schedule
    guidance_scale: float = 7.5
    checkpointing: bool = True

    def run(
        self, z: Tensor, timesteps: Sequence[int], prompt_embeds: Tensor, negative: Tensor, *, end: int | None = None
    ) -> list[Tensor]:
        """Denoise latents, and return them after each step.

        Args:
            z: (B, C, h, w) float32, latents at `timesteps[0]`.
            timesteps: training timesteps at which the model is evaluated, in descending order.
            prompt_embeds: (B, length, dim).
            negative: embeddings of the negative prompt, same shape; not used without guidance.
            end: training timestep of the result; None denoises to the end.

        Returns:
            For each step the latents (B, C, h, w) after it, float32.
        """
        trajectory = []
        for now, then in zip(timesteps, [*timesteps[1:], end], strict=True):
            prediction = self.predict(z, now, prompt_embeds, negative)
            alpha, alpha_then = self.schedule.alpha(now), self.schedule.alpha(then)
            z = ddim_step(z, prediction, alpha, alpha_then, self.schedule.prediction_type)
            trajectory.append(z)
        return trajectory

    def predict(self, z: Tensor, timestep: int | Tensor, prompt_embeds: Tensor, negative: Tensor) -> Tensor:
        """Return the model's guided prediction, (B, C, h, w) float32.

        See `run` for the arguments. Without guidance each sample may have a timestep of its own, (B,).
        """
        guided = self.guidance_scale > 1
        embeds = torch.cat([negative, prompt_embeds]) if guided else prompt_embeds
        doubled = (torch.cat([z, z]) if guided else z).to(embeds.dtype)
        if self.checkpointing and torch.is_grad_enabled():
            prediction = checkpoint(self._call, doubled, timestep, embeds, use_reentrant=False)
        else:
            prediction = self._call(doubled, timestep, embeds)
        if not guided:
            return prediction.float()
        without, with_prompt = prediction.float().chunk(2)
        return without + self.guidance_scale * (with_prompt - without)

    def _call(self, z: Tensor, timestep: int | Tensor, embeds: Tensor) -> Tensor:
        prediction: Tensor = self.unet(z, timestep, encoder_hidden_states=embeds, return_dict=False)[0]
        return prediction[:, : z.shape[1]]  # a model that learnt variances returns twice the channels


def ddim_step(z_t: Tensor, output: Tensor, alpha_bar: float, alpha_bar_next: float, prediction: Prediction) -> Tensor:
    """Take one DDIM step without noise (arXiv 2010.02502, equation 12).

    Args:
        z_t: (B, C, h, w), latents before the step.
        output: of the model, same shape.
        alpha_bar: of z_t, in (0, 1).
        alpha_bar_next: of the result, in (0, 1].
        prediction: what the model predicts.

    Returns:
        (B, C, h, w), latents after the step.
    """
    level = NoiseLevel.from_alpha_bar(alpha_bar)
    original, noise = (predict(output, z_t, level, prediction) for predict in (predict_original, predict_noise))
    return add_noise(original, noise, NoiseLevel.from_alpha_bar(alpha_bar_next))


def decode_images(vae: Any, z: Tensor, *, checkpointing: bool = True) -> Tensor:
    """Decode latents to images, with gradients.

    Args:
        vae: Diffusers' autoencoder.
        z: (B, C, h, w), scaled latents.
        checkpointing: recompute activations of the decoder in the backward pass, which saves memory.

    Returns:
        (B, 3, H, W) float32 in [0, 1].
    """
    if checkpointing and torch.is_grad_enabled():
        return checkpoint(lambda latents: decode(vae, latents), z, use_reentrant=False).clamp(0, 1)
    return decode(vae, z).clamp(0, 1)


@contextmanager
def frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """Put modules into evaluation mode and freeze their parameters. Both are restored at the end, even on errors."""
    modes = [(part, part.training) for module in modules for part in module.modules()]
    flags = [(value, value.requires_grad) for module in modules for value in module.parameters()]
    try:
        for module in modules:
            module.eval().requires_grad_(False)
        yield
    finally:
        for part, training in modes:
            part.training = training
        for value, flag in flags:
            value.requires_grad_(flag)
