"""Look for marked objects in other poses: in crops, and cut out, scaled or turned, and pasted into another image.

The image is cut into overlapping windows of two sizes, and itself. In each, poses of all scales are tried, first
upright, then at all angles: those in which a periodic pattern of any key is likeliest, at all shifts, mirrored too.
All poses of all windows count in the p-values, whichever of them are tried.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from privgen.watermark.tile.lattice import coarse_to_fine, likeliest
from privgen.watermark.tile.pattern import FACES, Pattern, mirrored_and_turned
from privgen.watermark.tile.poses import FINER, Poses, any_angle, as_is, upright
from privgen.watermark.tile.read import BANDS, SHIFTS, Reading, TilePose, read_pose
from privgen.watermark.tile.spectrum import Spectrum, spectrum_of, working_copy
from privgen.watermark.tile.wave import grid_of


Window = tuple[int, int, int, int]
"""Left, top, right and bottom edge, in pixels."""

_SIDES = ((0.5, 3), (1 / 3, 5))  # of windows, over the image's; and how many along each side
_SMALLEST = 24  # pixels along the short side of a window
_FEWEST, _MOST = 1.2, 8.0  # tiles along the short side of a window
_POSES, _FEWEST_POSES = 1_200, 300  # that are tried roughly in a window: for all keys, and at least for each
_CANDIDATES = 24  # of these, that are looked at closely for each key
_GRID = 128  # samples along a side of a tile when its pattern is drawn


@dataclass(frozen=True, eq=False)
class Pasted:
    """The best that a search found for one key.

    Attributes:
        z: correlation, in standard deviations.
        window: where it was found, in pixels of the working copy.
        pose: of the tile in the window.
        face: place of the face in `FACES`.
    """

    z: float
    window: Window
    pose: Poses
    face: int


class ObjectSearch:
    """The search for objects in one image.

    Args:
        pixels: (3, H, W) in [0, 1].
    """

    def __init__(self, pixels: Tensor) -> None:
        self.grey = working_copy(pixels)
        height, width = self.grey.shape
        windows: list[Window] = [(0, 0, width, height)]
        for fraction, count in _SIDES:
            high, wide = round(fraction * height), round(fraction * width)
            for row in range(count):
                for column in range(count):
                    top = round((height - high) * row / (count - 1))
                    left = round((width - wide) * column / (count - 1))
                    windows.append((left, top, left + wide, top + high))
        self.whole, self.windows = windows[0], [window for window in windows if min(_size(window)) >= _SMALLEST]
        upright_too = sum(len(_upright(_size(window))) for window in self.windows)
        turned = FINER**2 * sum(len(_any_angle(_size(window))) for window in self.windows)
        self.tries = max(1, (upright_too + turned) * len(FACES) * SHIFTS**2 * len(BANDS))

    def __call__(self, patterns: Sequence[Pattern], enough: float) -> list[Pasted]:
        """Return the best that is found for each key.

        Args:
            patterns: of K keys.
            enough: a key whose correlation reaches this is not searched for in further windows.
        """
        faces = [torch.stack([pattern.face(*face).template for face in FACES]) for pattern in patterns]
        templates = torch.stack(faces).to(self.grey.device)
        best = [Pasted(0.0, self.whole, as_is((_GRID, _GRID)), 0)] * len(patterns)
        for window in self.windows:
            if all(found.z >= enough for found in best):
                break
            spectrum = self.spectrum(window)
            for turned in (False, True):
                missing = [k for k, found in enumerate(best) if found.z < enough]
                poses = _any_angle(_size(window)) if turned else _upright(_size(window))
                poses = likeliest(spectrum, poses, max(_POSES // max(len(missing), 1), _FEWEST_POSES))
                if not missing or not len(poses):
                    continue
                finer: Literal["degrees"] | None = "degrees" if turned else None
                scores = coarse_to_fine(spectrum, templates[missing], poses, _CANDIDATES, finer)
                columns = (scores.z.tolist(), scores.face.tolist(), scores.row.tolist())
                for k, z, face, row in zip(missing, *columns, strict=True):
                    if z > best[k].z:
                        best[k] = Pasted(z, window, scores.poses[row : row + 1], face)
        return best

    def spectrum(self, window: Window) -> Spectrum:
        """Return the spectrum of a window."""
        left, top, right, bottom = window
        return spectrum_of(self.grey[top:bottom, left:right].expand(3, -1, -1))

    def read(self, found: Pasted, pattern: Pattern) -> Reading:
        """Read the bits of a key where it was found, at a pose that fits better."""
        return read_pose(self.spectrum(found.window), found.pose, pattern, FACES[found.face])

    def waves(self, reading: Reading, window: Window, pattern: Pattern) -> Tensor:
        """Return the pattern (h, w) of a key as it lies in the image, beyond the window, too."""
        height, width = self.grey.shape
        pose, device = reading.pose, self.grey.device
        degrees = pose.degrees % 360
        face = (int(degrees // 90), pose.mirrored)
        turned, tile = math.radians(degrees % 90), pose.tile
        start = mirrored_and_turned(*pose.shift, face)
        centre = ((window[0] + window[2]) // 2, (window[1] + window[3]) // 2)
        x = torch.arange(width, device=device, dtype=torch.float32)[None] - centre[0]
        y = torch.arange(height, device=device, dtype=torch.float32)[:, None] - centre[1]
        across = (math.cos(turned) * x - math.sin(turned) * y) / tile + start[0]
        down = (math.sin(turned) * x + math.cos(turned) * y) / tile + start[1]
        grid = grid_of(pattern.face(*face).template.to(device), _GRID)
        grid = torch.nn.functional.pad(grid[None, None], (0, 1, 0, 1), mode="circular")
        place = torch.stack([across % 1, down % 1], dim=-1) * 2 - 1
        return grid_sample(grid, place[None], align_corners=True)[0, 0]


def _size(window: Window) -> tuple[int, int]:
    return window[3] - window[1], window[2] - window[0]


def _upright(size: tuple[int, int]) -> Poses:
    """Poses of all scales in a window of a height and width, not turned."""
    return _of_usual_tiles(upright(size), size)


def _any_angle(size: tuple[int, int]) -> Poses:
    """A coarse lattice of poses of all scales and angles in a window of a height and width."""
    return _of_usual_tiles(any_angle(size), size)


def _of_usual_tiles(poses: Poses, size: tuple[int, int]) -> Poses:
    return poses[(poses.tile >= min(size) / _MOST) & (poses.tile <= min(size) / _FEWEST)]


def in_words(pose: TilePose, usual: float) -> str:
    """Return how an object lies, if tiles of its image were of a usual size, such as "1.20 times as large"."""
    scale = pose.tile / usual
    parts = ["moved"]
    parts += [f"{scale:.2f} times as large"] if abs(scale - 1) > 0.01 else []
    parts += ["mirrored"] if pose.mirrored else []
    parts += [f"turned by {pose.degrees:.0f} degrees"] if abs(pose.degrees) > 0.5 else []
    return ", ".join(parts)
