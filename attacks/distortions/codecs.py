"""Real image codecs in memory, as functions on tensors with a straight-through gradient."""

import io
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor


def through_codec(images: Tensor, codec: Literal["JPEG", "WEBP"], quality: int, subsampling: str = "4:2:0") -> Tensor:
    """Encode and decode each image with Pillow. The gradient is that of the identity (straight-through).

    Args:
        images: (B, 3, H, W) in [0, 1]; they are rounded to 8 bits.
        codec: name of the file format.
        quality: 1..100.
        subsampling: chroma subsampling of JPEG.

    Returns:
        (B, 3, H, W) in [0, 1], multiples of 1/255.
    """
    options: dict[str, Any] = {"format": codec, "quality": quality}
    if codec == "JPEG":
        options["subsampling"] = subsampling

    def recode(pixels: Tensor) -> Tensor:
        levels = pixels.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        decoded = []
        for image in levels:
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, **options)
            with Image.open(buffer) as opened:
                decoded.append(np.asarray(opened.convert("RGB")))
        return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).to(pixels) / 255

    return straight_through(images, recode)


def straight_through(images: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `function(images)` with the gradient of the identity."""
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
