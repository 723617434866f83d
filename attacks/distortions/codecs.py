"""Real image codecs in memory, as functions on tensors with a straight-through gradient."""

import io
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor


def through_codec(
    images: Tensor,
    codec: Literal["JPEG", "WEBP"],
    quality: int,
    subsampling: str = "4:2:0",
    *,
    at_most: int | None = None,
) -> Tensor:
    """Encode and decode each image with Pillow. The gradient is that of the identity (straight-through).

    Args:
        images: (B, 3, H, W) in [0, 1]; they are rounded to 8 bits.
        codec: name of the file format.
        quality: 1..100.
        subsampling: chroma subsampling of JPEG.
        at_most: size of a file in bytes. Where a file would be larger, its quality is lowered, down to 1.

    Returns:
        (B, 3, H, W) in [0, 1], multiples of 1/255.
    """

    def recode(pixels: Tensor) -> Tensor:
        levels = pixels.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        decoded = []
        for image in levels:
            data = encode_at_most(image, codec, quality, subsampling, at_most=at_most)
            with Image.open(io.BytesIO(data)) as opened:
                decoded.append(np.asarray(opened.convert("RGB")))
        return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2).to(pixels) / 255

    return straight_through(images, recode)


def encode_at_most(
    image: NDArray[np.uint8],
    codec: Literal["JPEG", "WEBP"],
    quality: int,
    subsampling: str = "4:2:0",
    *,
    at_most: int | None = None,
) -> bytes:
    """Return an image as a file of at most so many bytes.

    Args:
        image: (H, W, 3).
        codec: name of the file format.
        quality: 1..100, the highest that is tried.
        subsampling: chroma subsampling of JPEG.
        at_most: size of the file in bytes; None does not limit it.

    Returns:
        The file of the highest quality that fits; if none does, the file of quality 1.
    """
    options: dict[str, Any] = {"format": codec} | ({"subsampling": subsampling} if codec == "JPEG" else {})

    def encoded(level: int) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, quality=level, **options)
        return buffer.getvalue()

    data = encoded(quality)
    if at_most is None or len(data) <= at_most:
        return data
    best, fits, fails = encoded(1), 1, quality
    while fails - fits > 1:
        level = (fits + fails) // 2
        data = encoded(level)
        if len(data) <= at_most:
            best, fits = data, level
        else:
            fails = level
    return best


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
