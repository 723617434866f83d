"""Regeneration: an image through a text-to-image model's autoencoder, with noise in between or without."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from privgen.attacks.model_attack import PipelineLike, as_pipeline, size_of, vae_of
from privgen.attacks.purification.fit import FittedAttack
from privgen.attacks.registry import register
from privgen.attacks.steps import step_done
from privgen.diffusion.latents import decode, encode
from privgen.errors import PrivgenError
from privgen.io.pixels import pad_to_multiple
from privgen.models.family import patch_of


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


SCHEDULE = 1000
"""Noise is counted in steps of a schedule of this length."""


def image_to_image(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """Return the image-to-image form of a text-to-image pipeline, with the same networks.

    The pipeline stays as it is. If its schedule has cumulative alphas, the new one steps by DDIM and ends at the last
    timestep, so that a fraction of the schedule is exactly that fraction. It has no safety checker, which would return
    black images.

    Raises:
        PrivgenError: Diffusers has no such form of this pipeline.
    """
    from diffusers import AutoPipelineForImage2Image, DDIMScheduler

    changes: dict[str, Any] = {}
    if hasattr(pipeline.scheduler, "alphas_cumprod"):
        # As arguments, because fields that a configuration lists as defaults are not read from it.
        changes["scheduler"] = DDIMScheduler.from_config(
            pipeline.scheduler.config, timestep_spacing="trailing", clip_sample=False
        )
    if "safety_checker" in pipeline.components:
        changes |= {"safety_checker": None, "requires_safety_checker": False}
    # Diffusers knows its own classes only, so a pipeline that extends one is taken as that one.
    known: Any = next(cls for cls in type(pipeline).__mro__ if cls.__module__.startswith("diffusers."))
    base = pipeline if known is type(pipeline) else known.from_pipe(pipeline)
    try:
        found = AutoPipelineForImage2Image.from_pipe(base, **changes)
    except ValueError as error:
        raise PrivgenError(
            f"{type(pipeline).__name__} has no image-to-image form in Diffusers; use a text-to-image model."
        ) from error
    found.set_progress_bar_config(disable=True)
    return found


def step_length(t: int, longest: int) -> int:
    """Return the longest step, up to `longest`, that leads from t to 0 and divides the schedule evenly."""
    return max(step for step in range(1, longest + 1) if t % step == 0 and SCHEDULE % step == 0)


def regenerate(
    pipeline: DiffusionPipeline,
    images: Tensor,
    t: int,
    generators: list[torch.Generator],
    *,
    prompt: str = "",
    guidance_scale: float = 7.5,
    stride: int = 20,
) -> Tensor:
    """Encode images, add noise, denoise and decode: Zhao et al., arXiv 2306.01953, section 4.

    Args:
        pipeline: text-to-image or image-to-image.
        images: (B, 3, H, W) in [0, 1]; sides of any length.
        t: noise, in steps of a schedule of 1000; at least 1.
        generators: one for each image.
        prompt: what the images show.
        guidance_scale: scale of classifier-free guidance; it counts with a prompt only.
        stride: longest denoising step; the steps are the longest that lead from t to 0 evenly.

    Returns:
        (B, 3, H, W) in [0, 1].

    Raises:
        PrivgenError: the pipeline has no image-to-image form.
    """
    height, width = images.shape[-2:]
    regenerator = image_to_image(pipeline)
    network = getattr(pipeline, "unet", None)
    # A side must be whole at the coarsest level of the network; transformers join 2 x 2 latents.
    levels = len(network.config.block_out_channels) if network is not None else 2
    padded = pad_to_multiple(images, patch_of(pipeline.vae) * 2 ** (levels - 1))
    length = step_length(t, stride)
    made = regenerator(
        prompt=[prompt] * len(images),
        image=padded,
        strength=fraction_of(t // length, SCHEDULE // length),
        num_inference_steps=SCHEDULE // length,
        # Without a prompt, guidance would compare two equal predictions.
        guidance_scale=guidance_scale if prompt else 1.0,
        generator=generators,
        output_type="pt",
        callback_on_step_end=_step_done,
    )
    regenerated: Tensor = made.images[..., :height, :width]
    return regenerated.clamp(0, 1)


def _step_done(pipeline: DiffusionPipeline, step: int, t: Tensor, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tell that a step is done, as a callback of Diffusers' pipelines. It changes nothing."""
    del pipeline, step, t
    step_done(len(tensors["latents"]))
    return {}


def fraction_of(steps: int, total: int) -> float:
    """Return the fraction of `total` that pipelines turn into `steps` again; they multiply and round down.

    Flux's pipelines round up what is left of `total` instead, and take one step more for a few fractions.
    """
    fraction = steps / total
    while total * fraction < steps:
        fraction = math.nextafter(fraction, 2)
    return fraction


@register
@dataclass(frozen=True, repr=False)
class VaeRoundTrip(FittedAttack):
    """Encodes the image with an autoencoder, to the mean of its latents, and decodes it.

    Args:
        strength: number of round trips, 0 to 100.
        model: a model with an autoencoder: an embedded model's name, a folder, a Hub id, or a pipeline.
        fit: what happens to images that are larger than the model's, see `DiffPure`.
        device: device for a model given by name.
        dtype: precision of the weights of a model given by name.
    """

    name = "vae"
    unit = "round trips"
    sweep = (1,)
    bounds = (0, 100)
    whole = True

    strength: float = 1
    _: KW_ONLY
    model: PipelineLike = "mini"

    def prepare(self) -> None:
        vae_of(as_pipeline(self.model, self.device, self.dtype))

    def _canvas(self) -> int | None:
        return size_of(as_pipeline(self.model, self.device, self.dtype))

    def _steps(self) -> int:
        return int(self.strength)

    def _purify(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        vae = vae_of(as_pipeline(self.model, self.device, self.dtype))
        height, width = images.shape[-2:]
        for _ in range(int(self.strength)):
            decoded = decode(vae, encode(vae, pad_to_multiple(images, patch_of(vae))))
            images = decoded.clamp(0, 1)[..., :height, :width]
            step_done(len(images))
        return images


@dataclass(frozen=True, repr=False)
class _Regenerating(FittedAttack):
    """What one regeneration and several share: see `regenerate`."""

    _: KW_ONLY
    model: PipelineLike = "mini"
    prompt: str = ""
    guidance_scale: float = 7.5
    stride: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.stride <= SCHEDULE:
            raise ValueError(f"{self.name}: expected stride in 1..{SCHEDULE}, got {self.stride}")

    def prepare(self) -> None:
        image_to_image(as_pipeline(self.model, self.device, self.dtype))

    def _canvas(self) -> int | None:
        return size_of(as_pipeline(self.model, self.device, self.dtype))

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
@dataclass(frozen=True, repr=False)
class Regeneration(_Regenerating):
    """Adds noise to the image's latents, and lets a text-to-image model denoise them (arXiv 2306.01953).

    Gradients do not flow through it, because Diffusers' pipelines do not let them.

    Args:
        strength: noise, 0 to 1000, in steps of a schedule of 1000.
        model: a text-to-image model: an embedded model's name, a folder, a Hub id, or a pipeline.
        prompt: what the images show.
        guidance_scale: scale of classifier-free guidance; it counts with a prompt only.
        stride: longest denoising step, 1 to 1000, in steps of the schedule.
        fit: what happens to images that are larger than the model's, see `DiffPure`.
        device: device for a model given by name.
        dtype: precision of the weights of a model given by name.
    """

    name = "regeneration"
    unit = "steps of 1000"
    sweep = (30, 60, 100)
    bounds = (0, 1000)
    whole = True

    strength: float = 60

    def _steps(self) -> int:
        return int(self.strength) // step_length(int(self.strength), self.stride)

    def _purify(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        return self._regenerate(images, int(self.strength), 1, generators)


@register
@dataclass(frozen=True, repr=False)
class Rinsing(_Regenerating):
    """Regenerates the image several times in a row (WAVES, arXiv 2401.08573).

    Args:
        strength: number of regenerations, 0 to 100.
        t: noise of each regeneration, 1 to 1000, in steps of a schedule of 1000.
        model: see `Regeneration`, also for the other parameters.
    """

    name = "rinsing"
    unit = "regenerations"
    sweep = (2, 4)
    bounds = (0, 100)
    whole = True

    strength: float = 4
    _: KW_ONLY
    t: int = 60

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.t <= SCHEDULE:
            raise ValueError(f"rinsing: expected t in 1..{SCHEDULE}, got {self.t}")

    def _steps(self) -> int:
        return int(self.strength) * (self.t // step_length(self.t, self.stride))

    def _purify(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        return self._regenerate(images, self.t, int(self.strength), generators)
