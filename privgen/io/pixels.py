"""Pixels as tensors: resize them, and take their luma. The one home of both."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import interpolate


LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luma (ITU-R BT.601), as in Pillow's mode "L"."""


def resize(pixels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize with an antialiased bicubic filter; differentiable.

    Args:
        pixels: (B, C, H, W), any range. The filter overshoots at edges, so that pixels in [0, 1] may leave it.
        size: new height and width.

    Returns:
        (B, C, *size); `pixels` itself if it has that size.
    """
    if tuple(pixels.shape[-2:]) == tuple(size):
        return pixels
    return interpolate(pixels, size=list(size), mode="bicubic", antialias=True, align_corners=False)


def luma(pixels: Tensor) -> Tensor:
    """The luma of RGB pixels.

    Args:
        pixels: (..., 3, H, W).

    Returns:
        (..., 1, H, W), in the range of `pixels`.
    """
    red, green, blue = (weight * pixels[..., i : i + 1, :, :] for i, weight in enumerate(LUMA))
    return red + green + blue
