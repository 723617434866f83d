"""Resize and pad pixels, and take their luma."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import interpolate, pad


LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luma (ITU-R BT.601), the same as in the mode "L" of Pillow."""


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
