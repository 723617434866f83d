"""Two marks of one key in one image: a tile over the pattern in the latents, at one quality.

The tile is found again in crops, borders, turned, scaled and mirrored images. The pattern in the latents survives what
keeps the content and not the pixels, such as an autoencoder. Each of them hardly disturbs the other.
"""

import math

import torch
from torch import Tensor

from privgen.io.pixels import resize
from privgen.watermark.key import Key
from privgen.watermark.tile.embed import tile_residual
from privgen.watermark.tile.payload import pattern_with


LATENT_FRACTION = 0.2
"""Fraction of the squared change that goes to the pattern in the latents."""


def latent_psnr(psnr: float) -> float:
    """Return the quality, in dB, that the pattern in the latents alone has in a layered mark of a quality."""
    return psnr - 10 * math.log10(LATENT_FRACTION)


@torch.no_grad()
def layered_residual(pixels: Tensor, key: Key, latent: Tensor | None, payload: int | None = None) -> Tensor:
    """Return the mark of a key for an image, before it is scaled to a quality.

    Args:
        pixels: (3, H, W) in [0, 1].
        key: whose mark.
        latent: (3, S, S), what the pattern in the latents changes in the image resized to a square; None for a tile
            alone.
        payload: the ID that the tile carries; None is none.

    Returns:
        (3, H, W) float32.
    """
    tile = tile_residual(pixels, pattern_with(key, payload))
    if latent is None:
        return tile
    below = resize(latent[None].to(tile), tuple(pixels.shape[1:]))[0]
    below *= math.sqrt(LATENT_FRACTION) / _rms(below)
    return below.add_(tile, alpha=math.sqrt(1 - LATENT_FRACTION) / _rms(tile))


def _rms(change: Tensor) -> float:
    return max(float(torch.linalg.vector_norm(change)) / math.sqrt(change.numel()), 1e-12)
