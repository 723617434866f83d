"""Real image codecs in memory, as functions on tensors with a straight-through gradient."""

import io
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def through_codec(images: Tensor, **save: Any) -> Tensor:
    """Encode and decode each image with Pillow; the gradient is that of the identity (straight-through).

    Args:
        images: (B, 3, H, W) in [0, 1]; rounded to 8 bits.
        save: what `PIL.Image.Image.save` takes: format, quality and so on.

    Returns:
        (B, 3, H, W) in [0, 1], multiples of 1/255.
    """
    return straight_through(images, lambda pixels: _recode(pixels, save))


def straight_through(images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """`function(images)` with the gradient of the identity."""
    result: Tensor = _StraightThrough.apply(images, function)
    return result


class _StraightThrough(torch.autograd.Function):
    """Any function forward, the identity backward."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
        return function(images)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def _recode(images: Tensor, save: dict[str, Any]) -> Tensor:
    pixels = images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    decoded = np.stack([_recode_one(image, save) for image in pixels])
    return torch.from_numpy(decoded).permute(0, 3, 1, 2).to(images) / 255


def _recode_one(pixels: NDArray[np.uint8], save: dict[str, Any]) -> NDArray[np.uint8]:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, **save)
    with Image.open(buffer) as image:
        return np.asarray(image.convert("RGB"))
