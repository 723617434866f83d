"""Where the tiles of objects lie in an image: their size, and where they begin."""

import math

from privgen.watermark.tile.pattern import Place


TILES = (2, 4, 8)
"""Tiles along the short side of an image whose objects are marked: few in small images, whose pixels are few."""
START: Place = (0.0, 0.0)
"""Where the upper left corner of the image lies in a tile."""

_TILE_PIXELS = 64  # about the side of a tile


def tiles_of(size: tuple[int, int]) -> int:
    """Return how many tiles there are along the short side of an image of a height and width."""
    return 2 ** min(max(round(math.log2(min(size) / _TILE_PIXELS)), 1), 3)
