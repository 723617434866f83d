"""Resize and pad pixels, take their luma, and go through large images strip by strip.

One image is a tensor (3, H, W). Its pixels are floats in [0, 1], or the samples of an image file: uint8 or uint16. A
photograph of 24 megapixels has 72 MB of samples and 288 MB of floats, so functions that meet whole photographs take
both, and turn samples into floats one strip at a time.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad


LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luma (ITU-R BT.601), the same as in the mode "L" of Pillow."""

_LEVELS = {torch.uint8: 255, torch.uint16: 65535}
_STRIP = 2**18  # pixels worked on at a time: few enough to stay in the caches of a processor


def resize(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize with an antialiased bicubic filter. It is differentiable, and the same as that of Pillow.

    Args:
        pixels: (B, C, H, W), in any range.
        size: new height and width.

    Returns:
        (B, C, *size), or `pixels` itself if it has that size. The filter overshoots at edges, so values may leave the
        range of `pixels`: clamp them where that matters.
    """
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    return interpolate(pixels, size=list(size), mode="bicubic", antialias=True, align_corners=False)


def levels_of(pixels: Tensor) -> int | None:
    """Return the largest sample, 255 or 65535, if pixels are samples of a file; None if they are floats.

    Args:
        pixels: of any shape.
    """
    return _LEVELS.get(pixels.dtype)


def floats(pixels: Tensor) -> Tensor:
    """Return pixels as float32 in [0, 1].

    Args:
        pixels: floats in [0, 1], or samples of a file, of any shape.
    """
    levels = levels_of(pixels)
    return pixels.float() if levels is None else pixels.contiguous().float().div_(levels)


def rows_of_strips(pixels: Tensor) -> int:
    """Return how many rows of an image (3, H, W) to work on at a time, so that it needs little memory."""
    return max(1, _STRIP // pixels.shape[-1])


def strips(pixels: Tensor) -> Iterator[Tensor]:
    """Yield an image from top to bottom as strips (3, rows, W), float32 in [0, 1].

    Args:
        pixels: (3, H, W), floats in [0, 1] or samples of a file.
    """
    return map(floats, pixels.split(rows_of_strips(pixels), dim=1))


def resize_image(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize one image as `resize` does. Samples of a file become floats strip by strip.

    Args:
        pixels: (3, H, W), floats in [0, 1] or samples of a file.
        size: new height and width.

    Returns:
        (3, *size) float32; see `resize`.
    """
    if levels_of(pixels) is None or tuple(pixels.shape[1:]) == tuple(size):
        return resize(floats(pixels)[None], size)[0]
    # The filter works on rows first, then on columns, so rows can be made narrower strip by strip.
    narrow, top = torch.empty(3, pixels.shape[1], size[1], device=pixels.device), 0
    for strip in strips(pixels):
        bottom = top + strip.shape[1]
        narrow[:, top:bottom] = resize(strip[None], (strip.shape[1], size[1]))[0]
        top = bottom
    return resize(narrow[None], size)[0]


def luma(pixels: Tensor) -> Tensor:
    """Return the luma of RGB pixels.

    Args:
        pixels: (..., 3, H, W).

    Returns:
        (..., 1, H, W), in the same range.
    """
    red, green, blue = (weight * pixels[..., i : i + 1, :, :] for i, weight in enumerate(LUMA))
    return red + green + blue


def pad_to_multiple(pixels: Tensor, multiple: int) -> Tensor:
    """Repeat the last row and column of pixels until both sides are multiples of a number.

    Args:
        pixels: (B, C, H, W).
        multiple: at least 1.
    """
    height, width = pixels.shape[-2:]
    return pad(pixels, (0, -width % multiple, 0, -height % multiple), mode="replicate")
