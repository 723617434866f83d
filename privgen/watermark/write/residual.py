"""Add a mark to an existing image as a residual, at the image's own size.

"Your Text Encoder Can Be An Object-Level Watermarking Controller" (arXiv 2503.11945) pre-trains its extractor with a
residual R(m) that is added to latents. Here the same residual marks a photograph that no model has made. Only the
difference that it makes is delivered, x + upsample(D(z + R(m)) - D(z)), so that the autoencoder's reconstruction error
stays out of the image.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privgen.diffusion.latents import decode, encode
from privgen.io.pixels import luma, resize
from privgen.watermark.protocols import LatentMapperLike
from privgen.watermark.write.mark_spec import PSNR


_STRIP = 2**20  # pixels compared at a time, so that large photographs need little more memory than themselves
_ROUNDS, _CLOSE_DB, _LARGEST_GAIN = 8, 0.002, 16.0


@dataclass(frozen=True, eq=False)
class MarkedImage:
    """An image with a mark.

    Attributes:
        pixels: (3, H, W) in [0, 1], the size of the image.
        psnr: against the image, in dB; infinite where nothing changed.
        gain: the factor by which the residual was multiplied.
    """

    pixels: Tensor
    psnr: float
    gain: float


def to_canvas(images: Sequence[Tensor], size: int) -> Tensor:
    """Resize images to the model's square.

    Args:
        images: each (3, H, W) in [0, 1].
        size: side of the square in pixels.

    Returns:
        (B, 3, size, size) in [0, 1].

    Raises:
        ValueError: an image has another shape.
    """
    return torch.cat([resize(check_pixels(pixels)[None], (size, size)).clamp(0, 1) for pixels in images])


@torch.no_grad()
def latent_residuals(canvases: Tensor, bits: Tensor, *, vae: Any, latent_mapper: LatentMapperLike) -> Tensor:
    """The change that R(m) makes in decoded images: D(z + R(m)) - D(z).

    Args:
        canvases: (B, 3, S, S) in [0, 1].
        bits: (B, n_bits), or (1, n_bits) for all.
        vae: Diffusers' autoencoder.
        latent_mapper: R(m).

    Returns:
        (B, 3, S, S) float32, on the autoencoder's device.

    Raises:
        ValueError: the number of messages is neither 1 nor B.
    """
    if len(bits) not in (1, len(canvases)):
        raise ValueError(f"expected one message or {len(canvases)}, got {len(bits)}")
    z = encode(vae, canvases)
    residual = latent_mapper(bits.to(z.device), height=z.shape[-2], width=z.shape[-1])
    return decoded_difference(vae, z, z + residual.to(z))


def decoded_difference(vae: Any, plain: Tensor, marked: Tensor) -> Tensor:
    """D(marked) - D(plain), not clipped: pixels that saturate in the decoder need not saturate in the image.

    Args:
        vae: Diffusers' autoencoder.
        plain: (B, C, h, w), scaled latents.
        marked: the same shape.

    Returns:
        (B, 3, S, S) float32, in units of pixels in [0, 1].
    """
    without, with_mark = decode(vae, torch.cat([plain, marked])).chunk(2)
    return with_mark - without


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
    pixels: Tensor, residual: Tensor, *, psnr: float | None = PSNR, grey: bool = False, levels: int | None = None
) -> MarkedImage:
    """Add a residual to an image at the image's own size.

    Args:
        pixels: (3, H, W) in [0, 1].
        residual: (3, S, S), of the image resized to a square.
        psnr: quality of the result in dB, met to about 0.01 dB; None adds the residual as it is. Where clipping leaves
            no room (an image that is all white), the mark stays weaker.
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
    marked = torch.cat([strip for _, strip in _strips(pixels, difference, gain, levels)], dim=1)
    return MarkedImage(marked, _psnr(pixels, difference, gain, levels), gain)


def check_pixels(pixels: Tensor) -> Tensor:
    """Check that a tensor is one image, and return it.

    Raises:
        ValueError: its shape is not (3, H, W).
    """
    if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        raise ValueError(f"expected pixels of shape (3, height, width), got {tuple(pixels.shape)}")
    return pixels


def _gain(pixels: Tensor, difference: Tensor, psnr: float, levels: int | None) -> float:
    """The factor on the difference; a few fixed-point rounds make up for what clipping and rounding take away."""
    rms = float(torch.linalg.vector_norm(difference)) / math.sqrt(difference.numel())
    if rms == 0:
        return 0.0
    first = gain = 10 ** (-psnr / 20) / rms
    for _ in range(_ROUNDS):
        excess = _psnr(pixels, difference, gain, levels) - psnr
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
    """Rows of the image, without and with the mark."""
    rows = max(1, _STRIP // pixels.shape[-1])
    for plain, change in zip(pixels.split(rows, dim=1), difference.split(rows, dim=1), strict=True):
        marked = torch.add(plain, change, alpha=gain).clamp_(0, 1)
        yield plain, marked if levels is None else marked.mul_(levels).round_().div_(levels)
