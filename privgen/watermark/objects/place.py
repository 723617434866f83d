"""Where the tiles of objects lie in an image, and how fine they are."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Lattice:
    """A lattice of tiles that begins in the upper left corner of an image.

    Attributes:
        tiles: along the short side of the image.
        slope: the amplitude of a harmonic that is written is its frequency to this power.
    """

    tiles: int
    slope: float

    def tile(self, size: tuple[int, int]) -> float:
        """Return the side of a tile in pixels, in an image of a height and width."""
        return min(size) / self.tiles


SMALL, LARGE = Lattice(3, 0.0), Lattice(8, -0.7)
LATTICES = (SMALL, LARGE)
"""The tiles of objects in small and in large images. Small images have few pixels, and need them all. In large ones
the mark is coarser than the pixels, so that it survives compression and resizing."""

LARGE_FROM = 224
"""Short side in pixels of the smallest images that count as large."""


def lattice_of(size: tuple[int, int]) -> Lattice:
    """Return the lattice in which the objects of an image of a height and width are marked."""
    return LARGE if min(size) >= LARGE_FROM else SMALL
