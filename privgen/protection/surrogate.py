"""The models that a protection is computed against, in the hope that it works on the adversary's model too."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from privgen.hub import Placement, load_pipeline, resolve_device
from privgen.io.pixels import resize
from privgen.models.autoencoder import load_autoencoder
from privgen.models.family import Canvas


@dataclass(frozen=True)
class Surrogate:
    """The models that a protection is computed against. Each is loaded when it is first needed, and kept.

    Attributes:
        model: a text-to-image model, see `privgen.hub.load_pipeline`.
        vae: autoencoder for a model that has none of its own, such as "mini-sd".
        autoencoders: folders or Hub ids of further autoencoders, for methods that shift latents; without them these
            methods use the model's own.
        placement: device and precision. "auto" is float32 everywhere: gradients through float16 lose what is small.
    """

    model: str | os.PathLike[str] = "mini"
    vae: str | os.PathLike[str] | None = None
    autoencoders: tuple[str | os.PathLike[str], ...] = ()
    placement: Placement = field(default_factory=Placement)

    @cached_property
    def pipeline(self) -> Any:
        """The text-to-image pipeline, frozen, in evaluation mode.

        Raises:
            PrivgenError: it cannot be found or read.
        """
        place = self.placement
        dtype = "float32" if place.dtype == "auto" else place.dtype
        pipe = load_pipeline(self.model, vae=self.vae, device=place.device, dtype=dtype, safety_checker=False)
        for part in pipe.components.values():
            if isinstance(part, torch.nn.Module):
                part.eval().requires_grad_(False)
        return pipe

    @cached_property
    def encoders(self) -> list[Any]:
        """The autoencoders whose latents are shifted.

        Raises:
            PrivgenError: one cannot be found or read.
        """
        device = resolve_device(self.placement.device)
        return [load_autoencoder(name).to(device) for name in self.autoencoders] or [self.pipeline.vae]

    @cached_property
    def canvas(self) -> Canvas:
        """What the model draws on."""
        return Canvas.of_pipeline(self.pipeline)

    @property
    def device(self) -> torch.device:
        """Where the networks compute."""
        return resolve_device(self.placement.device)


def to_working_size(pixels: Tensor, side: int, multiple: int = 8) -> Tensor:
    """Resize images so that their short side is a given number of pixels, as training scripts do.

    Args:
        pixels: (B, 3, H, W) in [0, 1].
        side: the short side of the result, in pixels; a multiple of `multiple`.
        multiple: what the long side is rounded to.

    Returns:
        (B, 3, h, w) in [0, 1], of nearly the same aspect ratio.
    """
    height, width = pixels.shape[-2:]
    factor = side / min(height, width)
    shape = [max(side, round(length * factor / multiple) * multiple) for length in (height, width)]
    return resize(pixels, shape).clamp(0, 1)


def at_most(image: Tensor, side: int) -> Tensor:
    """An image (3, H, W) as it is, or scaled down if its short side has more pixels than `side`."""
    return image if min(image.shape[-2:]) <= side else to_working_size(image[None], side)[0]
