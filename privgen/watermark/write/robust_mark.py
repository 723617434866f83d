"""Fit marks to their image, so that they survive regeneration by a diffusion model.

A diffusion model that denoises a marked image removes the parts of the mark that do not fit the image. Which changes
it keeps depends on the image, so no fixed pattern survives everywhere. But whoever writes the mark has the image, the
model and the extractor. So the residual is optimised as robust adversarial examples are ("Synthesizing Robust
Adversarial Examples", arXiv 1707.07397): each step follows the gradient of the message's loss through noise, one
denoising step, the decoder and the extractor, and draws new noise. The residual keeps its size in pixels. Two things
keep crops
readable: the loss also asks that half of the image carries the message, and a fraction of the original residual is
added at the end.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from torch.nn.functional import softplus

from privgen.diffusion.latents import decode, encode
from privgen.diffusion.unrolled_ddim import Schedule, UnrolledDDIM, decode_images, frozen
from privgen.models.mappers import signs
from privgen.watermark.protocols import ExtractorLike, reader_as_drawn
from privgen.watermark.write.with_token import plain_embeds


_TIMESTEP = 120  # of 1000; one denoising step from here stands for two regenerations from 60
_LEARNING_RATE, _LAST_RATE = 0.3, 0.3  # Adam's, in RMS of the residual; and the fraction of it that the last step has
_CROP_AREA, _CROP_NOISE, _CROP_WEIGHT = 0.5, 0.06, 0.7  # fraction of the area, noise, and weight of the loss on a crop
_ORIGINAL_FRACTION = 0.5  # of the original residual that is added: the aligner reads crops by the original patterns
_SCALINGS = 6  # corrections of the residual's size in pixels


@dataclass(frozen=True, eq=False)
class RobustMarker:
    """Optimises residuals for their images.

    Attributes:
        pipe: Stable Diffusion 1 or 2, or mini. It is not changed.
        extractor: network that will read the marks; it must be differentiable.
        steps: steps of gradient descent. Each calls every network once or twice, forwards and backwards. 0 returns
            residuals as they are.

    Raises:
        UsageError: the model's scheduler is not of the DDPM family.
        ValueError: the number of steps is negative.
    """

    pipe: DiffusionPipeline
    extractor: ExtractorLike
    steps: int = 10

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"expected at least 0 steps, got {self.steps}")
        _ = self._schedule  # raises an error now rather than after images were made

    def __call__(self, z: Tensor, residual: Tensor, bits: Tensor, *, canvases: Tensor | None = None) -> Tensor:
        """Return better residuals. Each depends on its own image only, not on the others of the batch.

        Args:
            z: (B, C, h, w), scaled latents of the images.
            residual: residuals of the latents, same shape, not zero.
            bits: (B, n_bits) of 0 and 1, or (1, n_bits) for all images.
            canvases: (B, 3, S, S) in [0, 1], the images that will be marked; by default the decoded `z`.

        Returns:
            (B, C, h, w) float32. Decoded, they change the images by as much as `residual` does, in RMS of pixels.
        """
        if not self.steps:
            return residual.float()
        # Tensors that were made in inference mode have no gradients, so inference mode is left and tensors are cloned.
        with torch.inference_mode(False), torch.enable_grad(), frozen(self._networks()):
            z, residual, message = (part.detach().clone().float() for part in (z, residual, signs(bits)))
            with torch.no_grad():
                clean = decode(self.pipe.vae, z)
                base = clean.clamp(0, 1) if canvases is None else canvases.detach().clone().to(clean)
            return self._descend(z, residual, message.to(z), clean, base)

    @cached_property
    def _schedule(self) -> Schedule:
        return Schedule.of(self.pipe.scheduler)

    def _networks(self) -> list[nn.Module]:
        networks: list[Any] = [self.pipe.vae, self.pipe.unet, self.extractor]
        return [network for network in networks if isinstance(network, nn.Module)]

    def _descend(self, z: Tensor, residual: Tensor, message: Tensor, clean: Tensor, base: Tensor) -> Tensor:
        with torch.no_grad():
            loud = _rms(decode(self.pipe.vae, z + residual) - clean)
            embeds = plain_embeds(self.pipe, "").clone().expand(len(z), -1, -1)
        unit = _rms(residual)
        change = (residual / unit).requires_grad_()
        descent = torch.optim.Adam([change], lr=_LEARNING_RATE)
        for i in range(self.steps):
            descent.param_groups[0]["lr"] = _LEARNING_RATE * (1 - (1 - _LAST_RATE) * i / self.steps)
            difference = decode(self.pipe.vae, z + unit * change) - clean
            marked = (base + loud / _rms(difference) * difference).clamp(0, 1)
            noise = torch.Generator().manual_seed(i)
            loss = self._loss(self._regenerated(marked, embeds, noise), message)
            part = base + _window(base, noise) * (marked - base)
            loss = loss + _CROP_WEIGHT * self._loss(_noisy(part, _CROP_NOISE, noise).clamp(0, 1), message)
            descent.zero_grad()
            loss.backward()
            descent.step()
        change = change.detach()
        return self._as_loud(z, unit * change / _rms(change) + _ORIGINAL_FRACTION * residual, clean, loud)

    def _loss(self, images: Tensor, message: Tensor) -> Tensor:
        """Return the loss of reading the message: the sum over images, so that each has its own gradient."""
        return softplus(-message * reader_as_drawn(self.extractor)(images).float()).mean(dim=1).sum()

    def _regenerated(self, images: Tensor, embeds: Tensor, generator: torch.Generator) -> Tensor:
        schedule = self._schedule
        timestep = schedule.timestep(_TIMESTEP)
        alpha = schedule.alpha(timestep)
        z_t = _noisy(alpha**0.5 * encode(self.pipe.vae, images), (1 - alpha) ** 0.5, generator)
        denoiser = UnrolledDDIM(self.pipe.unet, schedule, 1.0, checkpointing=False)
        return decode_images(self.pipe.vae, denoiser.run(z_t, [timestep], embeds, embeds)[-1], checkpointing=False)

    @torch.no_grad()
    def _as_loud(self, z: Tensor, residual: Tensor, clean: Tensor, loud: Tensor) -> Tensor:
        for _ in range(_SCALINGS):
            residual = residual * (loud / _rms(decode(self.pipe.vae, z + residual) - clean))
        return residual


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()


def _noisy(values: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """Add noise, the same for each image of the batch."""
    return values + scale * torch.randn(values[:1].shape, generator=generator).to(values)


def _window(images: Tensor, generator: torch.Generator) -> Tensor:
    """Return a mask (1, 1, H, W): 1 in a random window of the image's proportions, 0 elsewhere."""
    height, width = images.shape[-2:]
    sides = round(_CROP_AREA**0.5 * height), round(_CROP_AREA**0.5 * width)
    top, left = (
        int(torch.randint(whole - side + 1, (), generator=generator))
        for whole, side in zip((height, width), sides, strict=True)
    )
    window = images.new_zeros(1, 1, height, width)
    window[..., top : top + sides[0], left : left + sides[1]] = 1
    return window
