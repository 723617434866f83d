"""Poses of a tile in an image, and the lattices of poses that a search visits.

A pose says how large the tile is in the image, and by how much it is turned. Mirror images and quarter turns are not
part of it, because a tile has eight faces for them; see `Pattern.face`. Nor is the place where the tile begins:
one Fourier transform tries all shifts.

The lattices are fixed before the search: they depend on the size of the image only. So the number of poses is known,
and p-values can be corrected for all of them, whichever of them a search visits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privgen.watermark.tile.pattern import HIGHEST


TILES = 4
"""Tiles along the short side of the image that is marked."""
SMALLEST, LARGEST = 0.2, 4.0
"""Sides of tiles that are searched for, over that of an image as it was marked: a quarter of its short side. Smaller
ones are in collages and wide borders, larger ones in crops."""
COARSE_CYCLES = 16
"""The first pass of the search for any angle reads harmonics below so many cycles a tile."""
FINER = 3
"""Each of its poses stands for so many in scale, times as many in angle; the best are tried one by one."""

_FINE_STEP, _COARSE_STEP = 0.7, 1.5  # of the lattices, over 1 / (highest harmonic * tiles in the image)
_FEWEST_PIXELS = 10.0  # of a tile's side in the working copy; less holds too few harmonics
_MOST_TILES = 5.0  # along a side, for which the steps in angle are fine enough
_MOST_TILES_UPRIGHT = 8.0
_NEAR, _NEAR_STEP = (0.992, 0.996, 1.0, 1.004, 1.008), 0.004  # sizes of tiles in images that hardly lost anything


@dataclass(frozen=True, eq=False)
class Poses:
    """Poses of a tile.

    Attributes:
        tile: (N,) float32, sides of the tile in pixels.
        degrees: (N,) float32, by which the face of the tile is turned counter-clockwise.
        step: (N,) float32, the distance of neighbours in the lattice: a fraction of the scale, and radians.
    """

    tile: Tensor
    degrees: Tensor
    step: Tensor

    def __len__(self) -> int:
        return len(self.tile)

    def __getitem__(self, rows: Tensor | slice) -> "Poses":
        return Poses(self.tile[rows], self.degrees[rows], self.step[rows])

    def to(self, device: torch.device) -> "Poses":
        """Return the poses on a device."""
        return Poses(self.tile.to(device), self.degrees.to(device), self.step.to(device))

    @classmethod
    def joined(cls, several: Sequence["Poses"]) -> "Poses":
        """Return all poses of several values."""
        return cls(*(torch.cat([getattr(poses, name) for poses in several]) for name in ("tile", "degrees", "step")))

    def finer(self) -> "Poses":
        """Return the `FINER` * `FINER` poses that each pose stands for, in scale and in angle."""
        offsets = torch.arange(FINER, device=self.tile.device) - FINER // 2
        step = (self.step / FINER)[:, None, None].expand(-1, FINER, FINER)
        return Poses(
            (self.tile[:, None, None] * torch.exp(step * offsets[:, None])).flatten(),
            (self.degrees[:, None, None] + torch.rad2deg(step * offsets)).flatten(),
            step.flatten(),
        )


def as_is(size: tuple[int, int]) -> Poses:
    """Return the one pose of an image that shows all that was marked, of any size and not turned.

    Args:
        size: height and width of the copy that is read, in pixels.
    """
    return _upright([(min(size) / TILES, _NEAR_STEP)])


def near_as_is(size: tuple[int, int]) -> Poses:
    """Return poses of images that show nearly all that was marked.

    Args:
        size: see `as_is`.
    """
    return _upright([(min(size) / TILES * scale, _NEAR_STEP) for scale in _NEAR])


def upright(size: tuple[int, int]) -> Poses:
    """Return poses of all scales, not turned: those of crops, borders and collages.

    Args:
        size: see `as_is`.
    """
    return _upright(_scales(size, HIGHEST, _FINE_STEP, max(size), _MOST_TILES_UPRIGHT))


def any_angle(size: tuple[int, int]) -> Poses:
    """Return a coarse lattice of poses of all scales and of all angles of a face, which are those of a quarter turn.

    Args:
        size: see `as_is`.
    """
    rows = []
    for tile, step in _scales(size, COARSE_CYCLES, _COARSE_STEP, math.sqrt(size[0] * size[1]), _MOST_TILES):
        count = math.ceil(math.pi / 2 / step)
        rows += [(tile, 90 / count * i, step) for i in range(count)]
    return Poses(*torch.tensor(rows).unbind(1))


def _upright(scales: list[tuple[float, float]]) -> Poses:
    tile, step = torch.tensor(scales).unbind(1)
    return Poses(tile, torch.zeros_like(tile), step)


def _scales(
    size: tuple[int, int], cycles: float, step: float, extent: float, most: float
) -> list[tuple[float, float]]:
    """Sides of tiles from the smallest to the largest, each with the distance to the next one as a fraction of it.

    Args:
        size: height and width of the image.
        cycles: of a tile that the steps resolve.
        step: the distance, over 1 / (cycles * tiles in the image).
        extent: side of the image.
        most: tiles along it that count.
    """
    whole = min(size) / TILES
    tile, last = max(SMALLEST * whole, _FEWEST_PIXELS), LARGEST * whole
    scales: list[tuple[float, float]] = []
    while tile <= last or not scales:  # at least one, for tiny images
        scales.append((tile, step / (cycles * min(max(extent / tile, 1.0), most))))
        tile *= 1 + scales[-1][1]
    return scales
