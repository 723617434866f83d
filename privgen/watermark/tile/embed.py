"""Write the mark of a key into an image, as a change of lightness that the eye hardly sees."""

import hashlib
import math

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, interpolate

from privgen.io.pixels import floats, resize_image
from privgen.io.residual import ChangedImage, add_residual
from privgen.metrics.visibility import tolerance_factors
from privgen.watermark.tile.pattern import PLACES, Pattern, Place
from privgen.watermark.tile.poses import TILES
from privgen.watermark.tile.spectrum import check_image
from privgen.watermark.tile.wave import harmonics_on, limit_peaks, sheet


PSNR = 42.0
"""Quality of a marked image against the image, in dB, if nothing else is asked for."""

_SLOPE = -0.7  # the amplitude of a harmonic is its frequency to this power
_PEAK, _ROUNDS = 1.5, 6  # how far the peaks of the tile are lowered; see `limit_peaks`
_MASKING = 0.3  # how much more change texture hides
_COPY = 2**20  # pixels; larger images are looked at in a smaller copy to tell what the eye tolerates
_SKETCH = 8  # pixels along each side of the sketch of an image that chooses a place
_STRIP = 2**20  # pixels that are made at a time


def mark_image(
    pixels: Tensor, pattern: Pattern, *, psnr: float = PSNR, grey: bool = False, levels: int | None = None
) -> ChangedImage:
    """Mark an image at its own size.

    Example:
        >>> import torch
        >>> from privgen import Key
        >>> from privgen.watermark.tile.embed import mark_image
        >>> from privgen.watermark.tile.pattern import pattern_of
        >>> photo = torch.rand(3, 256, 256)
        >>> round(mark_image(photo, pattern_of(Key.new("alice"))).psnr)
        42

    Args:
        pixels: (3, H, W), floats in [0, 1] of any type, or samples of a file; on any device.
        pattern: of the key.
        psnr: quality in dB; see `privgen.io.residual.add_residual`, as for `grey` and `levels`.
        grey: the image is greyscale. The mark changes all channels equally anyway.
        levels: round the result to multiples of 1 / levels.

    Returns:
        The marked image, in float32.

    Raises:
        ValueError: an image of another shape or type, or a quality that is not positive.
    """
    plain = floats(check_image(pixels))
    return add_residual(plain, tile_residual(plain, pattern), psnr=psnr, grey=grey, levels=levels)


@torch.no_grad()
def tile_residual(pixels: Tensor, pattern: Pattern) -> Tensor:
    """Return the mark of a key for an image, before it is scaled to a quality.

    The tile is repeated `TILES` times along the short side. Where it begins is one of the `PLACES`, which the key and
    the image choose together.

    Args:
        pixels: (3, H, W), floats in [0, 1] or samples of a file.
        pattern: of the key.

    Returns:
        (3, H, W) float32; the three channels are equal and share their memory.
    """
    height, width = check_image(pixels).shape[1:]
    amplitudes = amplitudes_of_mark(pattern, _SLOPE, pixels.device)
    place = PLACES[_choice(pixels, pattern)]
    return weighted_waves(tolerated(pixels), (height, width), amplitudes, min(height, width) / TILES, place)


def amplitudes_of_mark(pattern: Pattern, slope: float, device: torch.device) -> Tensor:
    """Return the amplitudes (M,) complex64 of a key's tile, with low peaks.

    Args:
        pattern: of the key.
        slope: an amplitude falls or rises with the frequency to this power.
        device: of the result.
    """
    across, down = harmonics_on(device)
    cycles = torch.hypot(across.float(), down.float())
    written = pattern.template if pattern.written is None else pattern.written
    return limit_peaks(written.to(device) * cycles.pow(slope), _PEAK, _ROUNDS)


def weighted_waves(weight: Tensor, size: tuple[int, int], amplitudes: Tensor, tile: float, place: Place) -> Tensor:
    """Return waves of a tile, weighted by what the eye tolerates in an image.

    Args:
        weight: (h, w), see `tolerated`.
        size: height and width of the image.
        amplitudes: (M,) complex64 of the harmonics.
        tile: side of the tile in pixels.
        place: where the upper left corner of the image lies in a tile.

    Returns:
        (3, H, W) float32; the three channels are equal and share their memory.
    """
    height, width = size
    across, down = harmonics_on(weight.device)
    phase = 2 * math.pi * (place[0] * across.float() + place[1] * down.float())
    amplitudes = amplitudes * torch.polar(torch.ones_like(phase), phase)
    residual = torch.empty(height, width, dtype=torch.float32, device=weight.device)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = range(top, min(top + rows, height))
        waves = sheet(amplitudes, strip, width, tile)
        torch.mul(waves, _enlarged(weight, strip, (height, width)), out=residual[top : strip.stop])
    return residual.expand(3, -1, -1)


def _choice(pixels: Tensor, pattern: Pattern) -> int:
    """Which of the `PLACES` an image gets: like chance, but the same whenever the same key marks the same image."""
    edges = [(row * pixels.shape[1] // _SKETCH, -(-(row + 1) * pixels.shape[1] // _SKETCH)) for row in range(_SKETCH)]
    rows = [adaptive_avg_pool2d(floats(pixels[:, top:bottom]), (1, _SKETCH)) for top, bottom in edges]
    sketch = (torch.cat(rows, dim=1) * 255).round().to("cpu", torch.int16)
    digest = hashlib.sha256(pattern.noise.cpu().numpy().tobytes() + sketch.numpy().tobytes()).digest()
    return digest[0] % len(PLACES)


def tolerated(pixels: Tensor) -> Tensor:
    """Return how much change the eye tolerates, (h, w) at the size of the image or of a smaller copy.

    It is the inverse slope of lightness, so that a mark with this weight changes the lightness by about the same
    amount everywhere, and up to half more in texture.

    Args:
        pixels: (3, H, W), floats in [0, 1] or samples of a file.
    """
    height, width = pixels.shape[1:]
    shrunk = min(1.0, (_COPY / (height * width)) ** 0.5)
    copy = resize_image(pixels, (max(1, round(height * shrunk)), max(1, round(width * shrunk))))[None].clamp(0, 1)
    lightness, texture = tolerance_factors(copy)
    return (lightness * (1 + _MASKING * (texture - 0.5)))[0, 0]


def _enlarged(weight: Tensor, rows: range, size: tuple[int, int]) -> Tensor:
    """Return some rows of a plane (h, w) after it is enlarged to a size, by straight lines between its pixels."""
    if weight.shape == size:
        return weight[rows.start : rows.stop]
    places = (torch.arange(rows.start, rows.stop, device=weight.device) + 0.5) * (weight.shape[0] / size[0]) - 0.5
    places = places.clamp(0, weight.shape[0] - 1)
    upper = places.floor().long().clamp(max=max(0, weight.shape[0] - 2))
    lower = (upper + 1).clamp(max=weight.shape[0] - 1)
    between = torch.lerp(weight[upper], weight[lower], (places - upper)[:, None].to(weight))
    return interpolate(between[None], size=size[1], mode="linear", align_corners=False)[0]
