"""Marks fitted to their image, so that they survive its regeneration.

A diffusion model that denoises a marked image takes the mark for noise where the image does not call for it. Which
changes it keeps depends on the image, so no fixed pattern has them all; but whoever marks has the image, the model and
the extractor. As adversarial examples are made robust ("Synthesizing Robust Adversarial Examples", arXiv 1707.07397),
the residual follows the gradient of the message's loss through what is to come: noise, one denoising step, the
decoder and the extractor, with new noise in every round, and its size in pixels stays what it was. So that cut-outs
can still be read, half of the image must carry the message too, and a share of the first residual comes back at last.
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
from privgen.watermark.protocols import ExtractorLike
from privgen.watermark.write.with_token import plain_embeds


_TIMESTEP = 120  # of 1000: one step from here stands for two regenerations from 60
_PACE, _SLOWEST = 0.3, 0.3  # of Adam, in RMS of the residual, and what is left of it in the last round
_NOISE, _PART, _PART_WEIGHT = 0.06, 0.5, 0.7  # of what else may come: noise, and a part of the area left
_SHARE = 0.5  # of the first residual in the last one: what reads parts knows the patterns that it was trained on
_ROUNDS_OF_SCALING = 6


@dataclass(frozen=True, eq=False)
class RobustMarker:
    """Fits residuals to images.

    Attributes:
        pipe: Stable Diffusion 1 or 2, or mini; it is left as it was.
        extractor: what will read the marks, differentiable.
        rounds: of gradient descent, each with a call or two of every network and the gradient; 0 leaves residuals
            alone.

    Raises:
        UsageError: the model's scheduler is not of the DDPM family.
        ValueError: a negative number of rounds.
    """

    pipe: DiffusionPipeline
    extractor: ExtractorLike
    rounds: int = 10

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise ValueError(f"expected at least 0 rounds, got {self.rounds}")
        _ = self._schedule  # whether there is one is better said before images are made

    def __call__(self, z: Tensor, residual: Tensor, bits: Tensor, *, canvases: Tensor | None = None) -> Tensor:
        """Refine residuals. An image's result does not depend on the others of its batch.

        Args:
            z: (B, C, h, w), scaled latents of the images.
            residual: added to them, same shape, not zero.
            bits: (B, n_bits) of 0 and 1, or (1, n_bits) for all.
            canvases: (B, 3, S, S) in [0, 1], the images that the decoded difference is added to; by default what `z`
                is decoded to.

        Returns:
            (B, C, h, w) float32; decoded, they change the images by as much as before, in RMS of pixels.
        """
        if not self.rounds:
            return residual.float()
        # A caller may be in inference mode, whose tensors take no part in gradients.
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
        descent = torch.optim.Adam([change], lr=_PACE)
        for i in range(self.rounds):
            descent.param_groups[0]["lr"] = _PACE * (1 - (1 - _SLOWEST) * i / self.rounds)
            difference = decode(self.pipe.vae, z + unit * change) - clean
            marked = (base + loud / _rms(difference) * difference).clamp(0, 1)
            noise = torch.Generator().manual_seed(i)
            loss = self._loss(self._regenerated(marked, embeds, noise), message)
            part = base + _window(base, noise) * (marked - base)
            loss = loss + _PART_WEIGHT * self._loss(_noisy(part, _NOISE, noise).clamp(0, 1), message)
            descent.zero_grad()
            loss.backward()
            descent.step()
        change = change.detach()
        return self._as_loud(z, unit * change / _rms(change) + _SHARE * residual, clean, loud)

    def _loss(self, images: Tensor, message: Tensor) -> Tensor:
        """Of the message read, summed over the images, so that the gradient of one does not depend on the others."""
        return softplus(-message * self.extractor(images).float()).mean(dim=1).sum()

    def _regenerated(self, images: Tensor, embeds: Tensor, generator: torch.Generator) -> Tensor:
        schedule = self._schedule
        timestep = schedule.timestep(_TIMESTEP)
        alpha = schedule.alpha(timestep)
        z_t = _noisy(alpha**0.5 * encode(self.pipe.vae, images), (1 - alpha) ** 0.5, generator)
        denoiser = UnrolledDDIM(self.pipe.unet, schedule, 1.0, checkpointing=False)
        return decode_images(self.pipe.vae, denoiser.run(z_t, [timestep], embeds, embeds)[-1], checkpointing=False)

    @torch.no_grad()
    def _as_loud(self, z: Tensor, residual: Tensor, clean: Tensor, loud: Tensor) -> Tensor:
        for _ in range(_ROUNDS_OF_SCALING):
            residual = residual * (loud / _rms(decode(self.pipe.vae, z + residual) - clean))
        return residual


def _rms(values: Tensor) -> Tensor:
    return values.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()


def _noisy(values: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """With the same noise for each of the batch."""
    return values + scale * torch.randn(values[:1].shape, generator=generator).to(values)


def _window(images: Tensor, generator: torch.Generator) -> Tensor:
    """1 in a part of the image, of its own proportions and anywhere in it, and 0 elsewhere; (1, 1, H, W)."""
    height, width = images.shape[-2:]
    sides = round(_PART**0.5 * height), round(_PART**0.5 * width)
    top, left = (
        int(torch.randint(whole - side + 1, (), generator=generator))
        for whole, side in zip((height, width), sides, strict=True)
    )
    window = images.new_zeros(1, 1, height, width)
    window[..., top : top + sides[0], left : left + sides[1]] = 1
    return window
