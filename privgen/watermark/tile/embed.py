"""Write the mark of a key into an image, as a change of lightness that the eye hardly sees."""

import torch
from torch import Tensor

from privgen.io.pixels import resize
from privgen.io.residual import ChangedImage, add_residual
from privgen.metrics.visibility import texture_factor, tolerance
from privgen.watermark.tile.pattern import Pattern
from privgen.watermark.tile.poses import TILES
from privgen.watermark.tile.spectrum import check_image
from privgen.watermark.tile.wave import harmonics_on, limit_peaks, sheet


VERSION = 1
"""Of the marks; a log of another version is not continued."""
PSNR = 42.0
"""Quality of a marked image against the image, in dB, if nothing else is asked for."""

_SLOPE = -0.7  # the amplitude of a harmonic is its frequency to this power
_PEAK, _ROUNDS = 1.5, 6  # how far the peaks of the tile are lowered; see `limit_peaks`
_MASKING = 0.3  # how much more change texture hides
_COPY = 2**20  # pixels; larger images are looked at in a smaller copy to tell what the eye tolerates
_STRIP = 2**22  # pixels that are made at a time


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
        pixels: (3, H, W) in [0, 1], on any device and of any floating-point type.
        pattern: of the key.
        psnr: quality in dB; see `privgen.io.residual.add_residual`, as for `grey` and `levels`.
        grey: the image is greyscale. The mark changes all channels equally anyway.
        levels: round the result to multiples of 1 / levels.

    Returns:
        The marked image, in float32.

    Raises:
        ValueError: an image of another shape or type, or a quality that is not positive.
    """
    plain = check_image(pixels).float()
    return add_residual(plain, tile_residual(plain, pattern), psnr=psnr, grey=grey, levels=levels)


@torch.no_grad()
def tile_residual(pixels: Tensor, pattern: Pattern) -> Tensor:
    """Return the mark of a key for an image, before it is scaled to a quality.

    The tile is repeated `TILES` times along the short side, with a corner of a tile at the upper left corner of the
    image. It is weighted so that the lightness changes by about the same amount everywhere, a little more in texture.

    Args:
        pixels: (3, H, W) in [0, 1].
        pattern: of the key.

    Returns:
        (3, H, W) float32; the three channels are equal and share their memory.
    """
    height, width = check_image(pixels).shape[1:]
    cycles = torch.stack(harmonics_on(pixels.device)).float().norm(dim=0)
    amplitudes = limit_peaks(pattern.template.to(pixels.device) * cycles**_SLOPE, _PEAK, _ROUNDS)
    weight = _tolerated(pixels)
    residual = torch.empty(height, width, device=pixels.device)
    rows = max(1, _STRIP // width)
    for top in range(0, height, rows):
        strip = range(top, min(top + rows, height))
        residual[top : strip.stop] = sheet(amplitudes, strip, width, min(height, width) / TILES)
    return (residual * weight).expand(3, -1, -1)


def _tolerated(pixels: Tensor) -> Tensor:
    """How much change the eye tolerates, (H, W): the inverse slope of lightness, and up to half more in texture."""
    height, width = pixels.shape[1:]
    shrunk = min(1.0, (_COPY / (height * width)) ** 0.5)
    copy = resize(pixels[None].float(), (max(1, round(height * shrunk)), max(1, round(width * shrunk)))).clamp(0, 1)
    texture = texture_factor(copy)
    weight = tolerance(copy) / texture * (1 + _MASKING * (texture - 0.5))
    return torch.nn.functional.interpolate(weight, size=(height, width), mode="bilinear", align_corners=False)[0, 0]
