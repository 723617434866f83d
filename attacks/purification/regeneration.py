"""Regeneration: an image through a text-to-image model's autoencoder, with noise in between or without."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from privgen.attacks.model_attack import ModelAttack
from privgen.attacks.purification.denoiser import decode_latents, encode_latents, freeze
from privgen.attacks.registry import register
from privgen.errors import PrivgenError
from privgen.io.pixels import pad_to_multiple


SCHEDULE = 1000
"""Steps of noise that a whole schedule is counted as."""


def as_pipeline(model: Any, device: str = "auto", dtype: str = "auto") -> Any:
    """A pipeline, as it was given or loaded by name and kept: see `privgen.hub.load_pipeline`.

    Raises:
        PrivgenError: the model cannot be found or read.
    """
    return _kept(os.fspath(model), device, dtype) if isinstance(model, (str, os.PathLike)) else model


@lru_cache(maxsize=1)
def _kept(model: str, device: str, dtype: str) -> Any:
    from privgen.hub import load_pipeline

    return freeze(load_pipeline(model, device=device, dtype=dtype, safety_checker=False))


def image_to_image(pipeline: Any) -> Any:
    """The image-to-image form of a text-to-image pipeline, with the same networks; the pipeline stays as it is.

    Where the model's schedule has cumulative alphas, steps are those of DDIM and timesteps end at the last one, so
    that a share of the schedule is exactly that share. Without a safety checker, which would return black images.

    Raises:
        PrivgenError: Diffusers knows no such form.
    """
    from diffusers import AutoPipelineForImage2Image, DDIMScheduler

    changes: dict[str, Any] = {}
    if hasattr(pipeline.scheduler, "alphas_cumprod"):
        # As arguments: what a configuration says of fields that were left at their defaults is not read.
        changes["scheduler"] = DDIMScheduler.from_config(
            pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False
        )
    if "safety_checker" in pipeline.components:
        changes |= {"safety_checker": None, "requires_safety_checker": False}
    try:
        found = AutoPipelineForImage2Image.from_pipe(_diffusers_own(pipeline), **changes)
    except ValueError as error:
        raise PrivgenError(
            f"{type(pipeline).__name__} has no image-to-image form in Diffusers; use a text-to-image model."
        ) from error
    found.set_progress_bar_config(disable=True)
    return found


def _diffusers_own(pipeline: Any) -> Any:
    """A pipeline of a class that Diffusers knows, for one that extends it."""
    known: Any = next(cls for cls in type(pipeline).__mro__ if cls.__module__.startswith("diffusers."))
    return pipeline if known is type(pipeline) else known.from_pipe(pipeline)


def step_length(t: int, longest: int) -> int:
    """The longest step, up to `longest`, that leads from t to 0 and divides the schedule evenly."""
    return max(step for step in range(1, longest + 1) if t % step == 0 and SCHEDULE % step == 0)


def regenerate(
    pipeline: Any,
    images: Tensor,
    t: int,
    generators: list[torch.Generator],
    *,
    prompt: str = "",
    guidance_scale: float = 7.5,
    stride: int = 20,
) -> Tensor:
    """Encode, add noise, denoise and decode: Zhao et al., arXiv 2306.01953, section 4.

    Args:
        pipeline: text-to-image or image-to-image.
        images: (B, 3, H, W) in [0, 1]; sides of any length.
        t: noise, in steps of a schedule of 1000; at least 1.
        generators: one for each image.
        prompt: what the images show.
        guidance_scale: of classifier-free guidance, where there is a prompt.
        stride: longest denoising step; the steps are the longest that lead from t to 0 evenly.

    Returns:
        (B, 3, H, W) in [0, 1], of the size of `images`.

    Raises:
        PrivgenError: the pipeline has no image-to-image form.
    """
    height, width = images.shape[-2:]
    padded = pad_to_multiple(images, _multiple(pipeline))
    length = step_length(t, stride)
    made = image_to_image(pipeline)(
        prompt=[prompt] * len(images),
        image=padded,
        strength=share_of(t // length, SCHEDULE // length),
        num_inference_steps=SCHEDULE // length,
        # Without a prompt, both predictions that guidance compares are the same one.
        guidance_scale=guidance_scale if prompt else 1.0,
        generator=generators,
        output_type="pt",
    )
    regenerated: Tensor = made.images[..., :height, :width]
    return regenerated.clamp(0, 1)


def share_of(steps: int, total: int) -> float:
    """The share of `total` that pipelines, which multiply and cut off the fraction, turn into `steps` again.

    Flux's, which cut off what is left of `total` instead, may take one step more for a few shares.
    """
    share = steps / total
    while total * share < steps:
        share = math.nextafter(share, 2)
    return share


def _multiple(pipeline: Any) -> int:
    """What sides are padded to a multiple of: one pixel at the network's coarsest level."""
    network = getattr(pipeline, "unet", None)
    levels = len(network.config.block_out_channels) if network is not None else 2
    return int(_vae_factor(pipeline)) * 2 ** (levels - 1)


def _vae_factor(pipeline: Any) -> int:
    factor = getattr(pipeline, "vae_scale_factor", None)
    return factor if factor is not None else 2 ** (len(pipeline.vae.config.block_out_channels) - 1)


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class VaeRoundTrip(ModelAttack):
    """An image through an autoencoder: encoded to the mean latent and decoded.

    Args:
        strength: round trips.
    """

    name = "vae"
    unit = "round trips"
    sweep = (1,)
    bounds = (0, 100)
    whole = True

    strength: float = 1

    def prepare(self) -> None:
        self._vae()

    def _vae(self) -> Any:
        pipeline = as_pipeline(self.model, self.device, self.dtype)
        vae = getattr(pipeline, "vae", None)
        if vae is None:
            raise PrivgenError(f"{type(pipeline).__name__} has no autoencoder; use a latent diffusion model.")
        return vae

    def _attack(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        vae = self._vae()
        height, width = images.shape[-2:]
        factor = 2 ** (len(vae.config.block_out_channels) - 1)
        for _ in range(int(self.strength)):
            x = 2 * pad_to_multiple(images, factor) - 1
            decoded = decode_latents(vae, encode_latents(vae, x))
            images = (decoded / 2 + 0.5).clamp(0, 1)[..., :height, :width]
        return images


@dataclass(frozen=True, kw_only=True, repr=False)
class _Regenerating(ModelAttack):
    """What one regeneration and several share."""

    prompt: str = ""
    guidance_scale: float = 7.5
    stride: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.stride <= SCHEDULE:
            raise ValueError(f"{self.name}: expected stride in 1..{SCHEDULE}, got {self.stride}")

    def prepare(self) -> None:
        image_to_image(as_pipeline(self.model, self.device, self.dtype))

    def _regenerate(self, images: Tensor, t: int, times: int, generators: list[torch.Generator]) -> Tensor:
        pipeline = as_pipeline(self.model, self.device, self.dtype)
        for _ in range(times):
            images = regenerate(
                pipeline,
                images,
                t,
                generators,
                prompt=self.prompt,
                guidance_scale=self.guidance_scale,
                stride=self.stride,
            ).to(images)
        return images


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class Regeneration(_Regenerating):
    """Zhao et al., Invisible image watermarks are provably removable using generative AI, arXiv 2306.01953.

    Gradients do not flow through it: Diffusers' pipelines do not let them.

    Args:
        strength: noise in latents, in steps of a schedule of 1000.
        model: the name of an embedded model, a folder or a Hub id, or a text-to-image pipeline.
        prompt: what the images show.
        guidance_scale: of classifier-free guidance, where there is a prompt.
        stride: longest denoising step, in steps of the schedule.
    """

    name = "regeneration"
    unit = "steps of 1000"
    sweep = (30, 60, 100)
    bounds = (0, 1000)
    whole = True

    strength: float = 60

    def _attack(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        return self._regenerate(images, int(self.strength), 1, generators)


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class Rinsing(_Regenerating):
    """Regeneration several times in a row: An et al., WAVES, arXiv 2401.08573.

    Args:
        strength: regenerations.
        t: noise of each, in steps of a schedule of 1000.
        model: see `Regeneration`, also for the other parameters.
    """

    name = "rinsing"
    unit = "regenerations"
    sweep = (2, 4)
    bounds = (0, 100)
    whole = True

    strength: float = 4
    t: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.t <= SCHEDULE:
            raise ValueError(f"rinsing: expected t in 1..{SCHEDULE}, got {self.t}")

    def _attack(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        return self._regenerate(images, self.t, int(self.strength), generators)
