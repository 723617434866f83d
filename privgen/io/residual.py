"""Deliver a change of an image at the image's own size: resized, scaled to a quality, and rounded as files are."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privgen.io.pixels import luma, resize


_STRIP = 2**18  # pixels compared at a time, so that large photographs need little more memory than themselves
_ROUNDS, _CLOSE_DB, _LARGEST_GAIN = 8, 0.002, 16.0


@dataclass(frozen=True, eq=False)
class ChangedImage:
    """An image with a change that should not be seen.

    Attributes:
        pixels: (3, H, W) in [0, 1], the size of the image.
        psnr: against the image, in dB; infinite where nothing changed.
        gain: the factor by which the residual was multiplied.
    """

    pixels: Tensor
    psnr: float
    gain: float


def to_canvas(images: Sequence[Tensor], size: int | tuple[int, int]) -> Tensor:
    """Resize images to the model's canvas.

    Args:
        images: each (3, H, W) in [0, 1].
        size: side of a square in pixels, or height and width.

    Returns:
        (B, 3, height, width) in [0, 1].

    Raises:
        ValueError: an image has another shape.
    """
    sides = (size, size) if isinstance(size, int) else size
    return torch.cat([resize(check_pixels(pixels)[None], sides).clamp(0, 1) for pixels in images])


def at_psnr(image: Tensor, residual: Tensor, psnr: Tensor) -> Tensor:
    """Add a residual that is scaled to a quality, for each image of a batch.

    Args:
        image: (B, 3, H, W) in [0, 1].
        residual: the same shape.
        psnr: (B,), in dB, of the sum before it is clipped to [0, 1].
    """
    rms = residual.square().mean(dim=(1, 2, 3)).sqrt()
    gain = 10 ** (-psnr / 20) / (rms + 1e-8)
    return (image + gain[:, None, None, None] * residual).clamp(0, 1)


def add_residual(
    pixels: Tensor, residual: Tensor, *, psnr: float | None, grey: bool = False, levels: int | None = None
) -> ChangedImage:
    """Add a residual to an image at the image's own size.

    Args:
        pixels: (3, H, W) in [0, 1].
        residual: (3, h, w), of the image resized to a canvas.
        psnr: quality of the result in dB, met to about 0.01 dB; None adds the residual as it is. Where clipping leaves
            no room (an image that is all white), the change stays weaker.
        grey: write the residual's luma into all channels, because the image is greyscale.
        levels: round the result to multiples of 1 / levels, as the file will that stores it: 255 or 65535.

    Raises:
        ValueError: an image of another shape, or a quality that is not positive.
    """
    if psnr is not None and not psnr > 0:
        raise ValueError(f"expected a quality above 0 dB, got {psnr}")
    # The filter is antialiased also where images are smaller than the square.
    difference = resize(residual[None].to(pixels), check_pixels(pixels).shape[-2:])[0]
    if grey:
        difference = luma(difference).expand(3, -1, -1)
    gain = 1.0 if psnr is None else _gain(pixels, difference, psnr, levels)
    marked, top = torch.empty_like(pixels), 0
    for _, strip in _strips(pixels, difference, gain, levels):
        marked[:, top : top + strip.shape[1]] = strip
        top += strip.shape[1]
    return ChangedImage(marked, _psnr(pixels, difference, gain, levels), gain)


def check_pixels(pixels: Tensor) -> Tensor:
    """Check that a tensor is one image, and return it.

    Raises:
        ValueError: its shape is not (3, H, W).
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        raise ValueError(f"expected pixels of shape (3, height, width), got {tuple(pixels.shape)}")
    return pixels


def _gain(pixels: Tensor, difference: Tensor, psnr: float, levels: int | None) -> float:
    """The factor on the difference, which makes up for what clipping and rounding take away."""
    rms = float(torch.linalg.vector_norm(difference)) / math.sqrt(difference.numel())
    if rms == 0:
        return 0.0
    return gain_for(psnr, 10 ** (-psnr / 20) / rms, lambda gain: _psnr(pixels, difference, gain, levels))


def gain_for(psnr: float, first: float, quality: Callable[[float], float]) -> float:
    """The gain with which a change has a quality, found from a first guess by a few fixed-point rounds.

    Args:
        psnr: the quality to meet, in dB.
        first: the gain that would do if nothing were clipped or rounded; 16 times as much is the most.
        quality: the quality in dB that a gain gives.
    """
    gain = first
    for _ in range(_ROUNDS):
        excess = quality(gain) - psnr
        if abs(excess) < _CLOSE_DB:
            break
        gain = min(gain * 10 ** (min(excess, 20) / 20), _LARGEST_GAIN * first)
    return gain


def _psnr(pixels: Tensor, difference: Tensor, gain: float, levels: int | None) -> float:
    total = sum(
        float((marked.double() - plain.double()).square().sum())
        for plain, marked in _strips(pixels, difference, gain, levels)
    )
    return -10 * math.log10(total / pixels.numel()) if total > 0 else math.inf


def _strips(pixels: Tensor, difference: Tensor, gain: float, levels: int | None) -> Iterator[tuple[Tensor, Tensor]]:
    """Rows of the image, without and with the change."""
    rows = max(1, _STRIP // pixels.shape[-1])
    for plain, change in zip(pixels.split(rows, dim=1), difference.split(rows, dim=1), strict=True):
        marked = torch.add(plain, change, alpha=gain).clamp_(0, 1)
        yield plain, marked if levels is None else marked.mul_(levels).round_().div_(levels)
