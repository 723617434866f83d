"""Poses of a tile in an image, and the lattices of poses that a search visits.

A pose says how large the tile is in the image, by how much it is turned, and how much the image was then stretched.
Mirror images and quarter turns are not part of it, because a tile has eight faces for them; see `Pattern.face`. Nor is
the place where the tile begins: one Fourier transform tries all shifts.

The lattices are fixed before the search: they depend on the size of the image only. So the number of poses is known,
and p-values can be corrected for all of them, whichever of them a search visits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

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
BesideScale: TypeAlias = Literal["degrees", "stretch"]
"""What changes besides the scale around a pose."""
BESIDE_SCALE: tuple[BesideScale, ...] = ("degrees", "stretch")
MOST_STRETCH = 2.0
"""Images that were stretched or squeezed by more than this are not searched for."""

_FINE_STEP, _COARSE_STEP = 0.7, 1.5  # of the lattices, over 1 / (highest harmonic * tiles in the image)
_FEWEST_PIXELS = 10.0  # of a tile's side in the working copy; less holds too few harmonics
_MOST_TILES = 5.0  # along a side, for which the steps in angle are fine enough
_MOST_TILES_UPRIGHT = 8.0
_STRETCH_STEP, _STRETCHED_SCALES = 1.4, (0.4, 2.5)  # step over that of the scale; sides of tiles, see `SMALLEST`
_NEAR, _NEAR_STEP = (0.992, 0.996, 1.0, 1.004, 1.008), 0.004  # sizes of tiles in images that hardly lost anything


@dataclass(frozen=True, eq=False)
class Poses:
    """Poses of a tile.

    Attributes:
        tile: (N,) float32, sides of the tile in pixels; if the image was stretched, of a square of the same area.
        degrees: (N,) float32, by which the face of the tile is turned counter-clockwise, before it is stretched.
        stretch: (N,) float32, by how much more the image was stretched in width than in height.
        step: (N,) float32, the distance of neighbours in the lattice: a fraction of the scale, and radians.
    """

    tile: Tensor
    degrees: Tensor
    stretch: Tensor
    step: Tensor

    def __len__(self) -> int:
        return len(self.tile)

    def __getitem__(self, rows: Tensor | slice) -> "Poses":
        return Poses(self.tile[rows], self.degrees[rows], self.stretch[rows], self.step[rows])

    def to(self, device: torch.device) -> "Poses":
        """Return the poses on a device."""
        return Poses(self.tile.to(device), self.degrees.to(device), self.stretch.to(device), self.step.to(device))

    @classmethod
    def joined(cls, several: Sequence["Poses"]) -> "Poses":
        """Return all poses of several values."""
        names = ("tile", "degrees", "stretch", "step")
        return cls(*(torch.cat([getattr(poses, name) for poses in several]) for name in names))

    def finer(self, beside_scale: BesideScale) -> "Poses":
        """Return the `FINER` * `FINER` poses that each pose stands for.

        Args:
            beside_scale: what changes besides the scale.
        """
        offsets = torch.arange(FINER, device=self.tile.device) - FINER // 2
        tile, degrees, stretch, step = (
            values[:, None, None].expand(-1, FINER, FINER)
            for values in (self.tile, self.degrees, self.stretch, self.step / FINER)
        )
        tile = tile * torch.exp(step * offsets[:, None])
        if beside_scale == "degrees":
            degrees = degrees + torch.rad2deg(step * offsets)
        else:
            stretch = stretch * torch.exp(_STRETCH_STEP * step * offsets)
        return Poses(tile.flatten(), degrees.flatten(), stretch.flatten(), step.flatten())


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
        rows += [(tile, 90 / count * i, 1.0, step) for i in range(count)]
    return _poses(rows)


def stretched(size: tuple[int, int]) -> Poses:
    """Return a coarse lattice of upright poses of images whose aspect ratio was changed.

    Args:
        size: see `as_is`.
    """
    rows = []
    smallest, largest = (factor * min(size) / TILES for factor in _STRETCHED_SCALES)
    for tile, step in _scales(size, COARSE_CYCLES, _COARSE_STEP, math.sqrt(size[0] * size[1]), _MOST_TILES):
        if smallest <= tile <= largest:
            count = int(math.log(MOST_STRETCH) / (_STRETCH_STEP * step))
            ratios = [math.exp(_STRETCH_STEP * step * i) for i in range(-count, count + 1) if i]
            rows += [(tile, 0.0, ratio, step) for ratio in ratios]
    return _poses(rows)


def _upright(scales: list[tuple[float, float]]) -> Poses:
    return _poses([(tile, 0.0, 1.0, step) for tile, step in scales])


def _poses(rows: list[tuple[float, float, float, float]]) -> Poses:
    return Poses(*torch.tensor(rows, dtype=torch.float32, device="cpu").reshape(-1, 4).unbind(1))


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
