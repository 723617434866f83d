"""Marks on existing images, and what an extractor reads from images of any size.

"Your Text Encoder Can Be An Object-Level Watermarking Controller" (arXiv 2503.11945) pre-trains its extractor with a
residual R(m) that is added to latents; here the same residual marks a photo that no model has made. Delivered is only
the difference that it makes, x + upsample(D(z + R(m)) - D(z)), at the photo's own size, so that the autoencoder's
reconstruction error stays out.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from privgen.io.images import LoadedImage, resize
from privgen.watermark.protocols import ExtractorLike, LatentMapperLike, config_value, device_of


PSNR_DB = 38.1
"""Quality of a marked photo against the photo, in dB."""

CANVAS = 128
"""Side in pixels of mini's images, and of what its extractor reads."""

_LUMINANCE = (0.299, 0.587, 0.114)  # ITU-R BT.601, by which grey images are saved
_STRIP = 2**20  # pixels that are compared at a time, so that large photos need little more than themselves
_ROUNDS, _CLOSE_DB, _LARGEST_GAIN = 8, 0.002, 16.0


@dataclass(frozen=True, eq=False)
class MarkedImage:
    """A photo with a mark.

    Attributes:
        pixels: (3, H, W) in [0, 1], the size of the photo.
        psnr_db: against the photo; infinite where nothing changed.
        gain: what the decoded difference was multiplied by.
    """

    pixels: Tensor
    psnr_db: float
    gain: float


def mark_image(
    pixels: Tensor,
    bits: Tensor,
    *,
    vae: Any,
    latent_mapper: LatentMapperLike,
    psnr_db: float | None = PSNR_DB,
    size: int = CANVAS,
    grey: bool = False,
) -> MarkedImage:
    """Mark one photo with the carrier `latent`.

    Args:
        pixels: (3, H, W) in [0, 1], any size.
        bits: (n_bits,) of 0 and 1.
        vae: Diffusers' autoencoder.
        latent_mapper: R(m).
        psnr_db: quality of the result; None adds the difference as it is decoded.
        size: side of the model's images; the photo is squeezed to that square, as the extractor does too.
        grey: write the difference's luminance into all channels, because the photo is saved as greyscale.

    Raises:
        ValueError: shapes that do not fit.
    """
    return mark_images(
        [pixels], bits[None], vae=vae, latent_mapper=latent_mapper, psnr_db=psnr_db, size=size, grey=grey
    )[0]


def mark_images(
    images: Sequence[Tensor],
    bits: Tensor,
    *,
    vae: Any,
    latent_mapper: LatentMapperLike,
    psnr_db: float | None = PSNR_DB,
    size: int = CANVAS,
    grey: bool = False,
) -> list[MarkedImage]:
    """Mark photos of any sizes at once.

    Args:
        images: B photos, each (3, H, W) in [0, 1].
        bits: (B, n_bits), or (1, n_bits) for all of them.
        vae: see `mark_image`, as the others.
        latent_mapper: R(m).
        psnr_db: quality of each result.
        size: side of the model's images.
        grey: whether all of them are greyscale.

    Raises:
        ValueError: shapes that do not fit.
    """
    residuals = latent_residuals(to_canvas(images, size), bits, vae=vae, latent_mapper=latent_mapper)
    return [
        add_residual(pixels, residual, psnr_db=psnr_db, grey=grey)
        for pixels, residual in zip(images, residuals, strict=True)
    ]


def to_canvas(images: Sequence[Tensor], size: int = CANVAS) -> Tensor:
    """Squeeze images to the model's square.

    Args:
        images: each (3, H, W) in [0, 1].
        size: side of the square.

    Returns:
        (B, 3, size, size) in [0, 1].

    Raises:
        ValueError: an image of another shape.
    """
    return torch.cat([resize(_checked(pixels)[None], (size, size)) for pixels in images])


@torch.no_grad()
def latent_residuals(canvases: Tensor, bits: Tensor, *, vae: Any, latent_mapper: LatentMapperLike) -> Tensor:
    """What R(m) changes in decoded images: D(z + R(m)) - D(z).

    Args:
        canvases: (B, 3, S, S) in [0, 1].
        bits: (B, n_bits), or (1, n_bits) for all.
        vae: Diffusers' autoencoder.
        latent_mapper: R(m).

    Returns:
        (B, 3, S, S) float32, on the autoencoder's device.

    Raises:
        ValueError: as many messages as neither 1 nor B.
    """
    if len(bits) not in (1, len(canvases)):
        raise ValueError(f"expected one message or {len(canvases)}, got {len(bits)}")
    z = encode_canvas(vae, canvases)
    residual = latent_mapper(bits.to(z.device), height=z.shape[-2], width=z.shape[-1])
    return decoded_difference(vae, z, z + residual.to(z))


def at_psnr(image: Tensor, residual: Tensor, psnr_db: Tensor) -> Tensor:
    """Add a residual, scaled per image to the given quality.

    Args:
        image: shape (B, 3, H, W) in [0, 1].
        residual: the same shape.
        psnr_db: shape (B,), PSNR of the sum before it is clipped to [0, 1].
    """
    rms = residual.square().mean(dim=(1, 2, 3)).sqrt()
    gain = 10 ** (-psnr_db / 20) / (rms + 1e-8)
    return (image + gain[:, None, None, None] * residual).clamp(0, 1)


def encode_canvas(vae: Any, canvases: Tensor) -> Tensor:
    """Encode without sampling.

    Args:
        vae: Diffusers' autoencoder.
        canvases: (B, 3, S, S) in [0, 1].

    Returns:
        (B, C, h, w) float32, scaled latents.
    """
    latents = vae.encode((2 * canvases - 1).to(vae.device, vae.dtype)).latent_dist.mean.float()
    return (latents - _shift(vae)) * vae.config.scaling_factor


def decoded_difference(vae: Any, plain: Tensor, marked: Tensor) -> Tensor:
    """D(marked) - D(plain), not clipped: what saturates in the decoder need not saturate in the photo.

    Args:
        vae: Diffusers' autoencoder.
        plain: (B, C, h, w), scaled latents.
        marked: the same shape.

    Returns:
        (B, 3, S, S) float32, in units of pixels in [0, 1].
    """
    without, with_mark = decoded(vae, torch.cat([plain, marked])).chunk(2)
    return with_mark - without


def decoded(vae: Any, latents: Tensor) -> Tensor:
    """Decode without clipping.

    Args:
        vae: Diffusers' autoencoder.
        latents: (B, C, h, w), scaled latents.

    Returns:
        (B, 3, S, S) float32, pixels mostly in [0, 1].
    """
    unscaled = (latents / vae.config.scaling_factor + _shift(vae)).to(vae.dtype)
    return vae.decode(unscaled, return_dict=False)[0].float() / 2 + 0.5


def add_residual(
    pixels: Tensor,
    residual: Tensor,
    *,
    psnr_db: float | None = PSNR_DB,
    grey: bool = False,
    levels: int | None = None,
) -> MarkedImage:
    """Deliver a residual at the photo's own size.

    Args:
        pixels: (3, H, W) in [0, 1].
        residual: (3, S, S), of the photo squeezed to a square.
        psnr_db: quality of the result, met to about 0.01 dB; None adds the residual as it is. Where clipping leaves no
            room for it (an image all white), the mark stays weaker.
        grey: write the residual's luminance into all channels.
        levels: round the result to multiples of 1 / levels, as the file will that it is saved in: 255 or 65535.

    Raises:
        ValueError: an image of another shape, or a quality that is not positive.
    """
    if psnr_db is not None and not psnr_db > 0:
        raise ValueError(f"expected a quality above 0 dB, got {psnr_db}")
    shape = tuple(_checked(pixels).shape[-2:])
    # Antialiasing matters for photos smaller than the square, and makes enlarging faster.
    difference = interpolate(residual[None].to(pixels), shape, mode="bicubic", antialias=True)[0]
    if grey:
        weights = torch.tensor(_LUMINANCE).to(difference)
        difference = torch.einsum("chw,c->hw", difference, weights).expand(3, -1, -1)
    gain = 1.0 if psnr_db is None else _gain(pixels, difference, psnr_db, levels)
    marked = torch.cat([strip for _, strip in _strips(pixels, difference, gain, levels)], dim=1)
    return MarkedImage(marked, _psnr(pixels, difference, gain, levels), gain)


@torch.no_grad()
def read_logits(images: Iterable[Tensor | LoadedImage], extractor: ExtractorLike, *, batch_size: int = 16) -> Tensor:
    """Read images of any sizes.

    Args:
        images: each (3, H, W) in [0, 1]; a tensor (B, 3, H, W) is B of them. An iterator is read a batch at a time.
        extractor: images to logits.
        batch_size: images that are read at a time.

    Returns:
        (B, n_bits) float32, on the CPU.

    Raises:
        ValueError: no image, or one of another shape.
    """
    remaining, logits = iter(images), []
    while batch := [as_read(image, extractor) for image in islice(remaining, batch_size)]:
        logits.append(extractor(torch.stack(batch)).float().cpu())
    if not logits:
        raise ValueError("expected at least one image, got none")
    return torch.cat(logits)


def as_read(image: Tensor | LoadedImage, extractor: ExtractorLike) -> Tensor:
    """Resize an image as the extractor resizes what has another size.

    Args:
        image: (3, H, W) in [0, 1].
        extractor: its `config.size` is the side of what it reads.

    Returns:
        (3, size, size) float32 on the extractor's device.

    Raises:
        ValueError: an image of another shape.
    """
    size = int(config_value(extractor, "size", CANVAS))
    pixels = _checked(image.pixels if isinstance(image, LoadedImage) else image).to(
        device_of(extractor), torch.float32
    )
    if tuple(pixels.shape[-2:]) == (size, size):
        return pixels
    return interpolate(pixels[None], (size, size), mode="bicubic", align_corners=False, antialias=True)[0]


def _gain(pixels: Tensor, difference: Tensor, psnr_db: float, levels: int | None) -> float:
    """What to multiply the difference by; fixed-point rounds make up for what clipping and rounding take."""
    rms = float(torch.linalg.vector_norm(difference)) / math.sqrt(difference.numel())
    if rms == 0:
        return 0.0
    first = gain = 10 ** (-psnr_db / 20) / rms
    for _ in range(_ROUNDS):
        excess = _psnr(pixels, difference, gain, levels) - psnr_db
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
    """Rows of the photo, without and with the mark."""
    rows = max(1, _STRIP // pixels.shape[-1])
    for plain, change in zip(pixels.split(rows, dim=1), difference.split(rows, dim=1), strict=True):
        marked = torch.add(plain, change, alpha=gain).clamp_(0, 1)
        yield plain, marked if levels is None else marked.mul_(levels).round_().div_(levels)


def _checked(pixels: Tensor) -> Tensor:
    if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        raise ValueError(f"expected pixels of shape (3, height, width), got {tuple(pixels.shape)}")
    return pixels


def _shift(vae: Any) -> float:
    return float(getattr(vae.config, "shift_factor", None) or 0)
