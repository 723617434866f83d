"""Two marks of one key in one image: a tile over the pattern in the latents, at one quality.

The tile is found again in crops, borders, turned, scaled and mirrored images. The pattern in the latents survives what
keeps the content and not the pixels, such as an autoencoder. Each of them hardly disturbs the other.
"""

import math

import torch
from torch import Tensor

from privgen.io.residual import Layers, rms_on
from privgen.watermark.key import Key
from privgen.watermark.tile.embed import tile_residual
from privgen.watermark.tile.payload import pattern_with


LATENT_FRACTION = 0.2
"""Fraction of the squared change that goes to the pattern in the latents."""


def latent_psnr(psnr: float) -> float:
    """Return the quality, in dB, that the pattern in the latents alone has in a layered mark of a quality."""
    return psnr - 10 * math.log10(LATENT_FRACTION)


@torch.no_grad()
def layered_residual(pixels: Tensor, key: Key, latent: Tensor | None, payload: int | None = None) -> Layers:
    """Return the mark of a key for an image, before it is scaled to a quality.

    Args:
        pixels: (3, H, W), floats in [0, 1] or samples.
        key: whose mark.
        latent: (3, S, S), what the pattern in the latents changes in the image resized to a square; None for a tile
            alone.
        payload: the ID that the tile carries; None is none.
    """
    tile = tile_residual(pixels, pattern_with(key, payload))[:1]  # its channels are equal
    if latent is None:
        return Layers((tile,), (1.0,))
    fractions = (LATENT_FRACTION, 1 - LATENT_FRACTION)
    parts = (latent, tile)
    sizes = [max(rms_on(pixels, part), 1e-12) for part in parts]
    return Layers(parts, tuple(math.sqrt(part) / size for part, size in zip(fractions, sizes, strict=True)))
