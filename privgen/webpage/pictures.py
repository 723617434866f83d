"""Pictures to look at: smaller copies for the page, and what differs between two, amplified."""

from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from privgen.io.images import to_pil
from privgen.io.pixels import resize


LONG_SIDE = 1200
"""Longest side of a picture on the page, in pixels; files to download keep their size."""

FACTORS = (1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Difference:
    """What differs between two pictures, amplified.

    Attributes:
        picture: grey where nothing differs.
        factor: by which the difference was multiplied.
    """

    picture: Image.Image
    factor: int


def preview(pixels: Tensor) -> Image.Image:
    """Return a picture that is no larger than the page needs.

    Args:
        pixels: (3, H, W) in [0, 1].
    """
    return to_pil(_smaller(pixels))


def difference(before: Tensor, after: Tensor) -> Difference:
    """Return the difference of two pictures as it can be seen on the page, amplified until it shows.

    Args:
        before: (3, H, W) in [0, 1].
        after: the same shape.
    """
    change = _smaller(after) - _smaller(before)
    strong = float(change.abs().flatten()[:: max(1, change.numel() // 100_000)].quantile(0.995))
    factor = max((factor for factor in FACTORS if factor * strong <= 0.5), default=1)
    return Difference(to_pil((0.5 + factor * change).clamp(0, 1)), factor)


def save_picture(picture: Image.Image, path: Path) -> Path:
    """Write a picture for the page as PNG, which changes nothing, with little compression, which is fast."""
    picture.save(path, "PNG", compress_level=1)
    return path


def _smaller(pixels: Tensor) -> Tensor:
    height, width = pixels.shape[-2:]
    scale = LONG_SIDE / max(height, width)
    if scale >= 1:
        return pixels
    size = (max(1, round(scale * height)), max(1, round(scale * width)))
    with torch.no_grad():
        return resize(pixels[None], size)[0].clamp(0, 1)
