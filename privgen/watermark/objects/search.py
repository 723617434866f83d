"""Look for marked objects in other poses: in crops, and cut out, scaled or turned, and pasted into another image.

The image is cut into overlapping windows of two sizes, and itself. In each, the poses in which a periodic pattern of
any key is likeliest are tried for each key, at all shifts, mirrored too. All poses of all windows count in the
p-values, whichever of them are tried.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from privgen.watermark.tile.lattice import coarse_to_fine, likeliest
from privgen.watermark.tile.pattern import FACES, Pattern, mirrored_and_turned
from privgen.watermark.tile.poses import FINER, Poses, any_angle
from privgen.watermark.tile.read import BANDS, SHIFTS, Reading, TilePose, read_pose
from privgen.watermark.tile.spectrum import Spectrum, spectrum_of, working_copy
from privgen.watermark.tile.wave import grid_of


Window = tuple[int, int, int, int]
"""Left, top, right and bottom edge, in pixels."""

_SIDES = ((0.5, 3), (1 / 3, 5))  # of windows, over the image's; and how many along each side
_FEWEST, _MOST = 1.2, 8.0  # tiles along the short side of a window
_POSES, _CANDIDATES = 300, 24  # that are tried in a window for each key: roughly, and closely
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
        self.windows: list[Window] = [(0, 0, width, height)]
        for fraction, count in _SIDES:
            high, wide = round(fraction * height), round(fraction * width)
            for row in range(count):
                for column in range(count):
                    top = round((height - high) * row / (count - 1))
                    left = round((width - wide) * column / (count - 1))
                    self.windows.append((left, top, left + wide, top + high))
        self.tries = sum(len(self._poses(window)) for window in self.windows)
        self.tries *= FINER**2 * len(FACES) * SHIFTS**2 * len(BANDS)

    def _poses(self, window: Window) -> Poses:
        size = (window[3] - window[1], window[2] - window[0])
        poses = any_angle(size)
        return poses[(poses.tile >= min(size) / _MOST) & (poses.tile <= min(size) / _FEWEST)]

    def __call__(self, patterns: Sequence[Pattern], enough: float) -> list[Pasted]:
        """Return the best that is found for each key.

        Args:
            patterns: of K keys.
            enough: a key whose correlation reaches this is not searched for in further windows.
        """
        faces = [torch.stack([pattern.face(*face).template for face in FACES]) for pattern in patterns]
        templates = torch.stack(faces).to(self.grey.device)
        best = [Pasted(0.0, self.windows[0], any_angle((_GRID, _GRID))[:1], 0)] * len(patterns)
        for window in self.windows:
            missing = [k for k, found in enumerate(best) if found.z < enough]
            if not missing:
                break
            spectrum = self.spectrum(window)
            poses = likeliest(spectrum, self._poses(window), _POSES)
            if not len(poses):
                continue
            scores = coarse_to_fine(spectrum, templates[missing], poses, _CANDIDATES, "degrees")
            for k, z, face, row in zip(
                missing, *(v.tolist() for v in (scores.z, scores.face, scores.row)), strict=True
            ):
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


def in_words(pose: TilePose, usual: float) -> str:
    """Return how an object lies, if tiles of its image were of a usual size, such as "1.20 times as large"."""
    scale = pose.tile / usual
    parts = ["moved"]
    parts += [f"{scale:.2f} times as large"] if abs(scale - 1) > 0.01 else []
    parts += ["mirrored"] if pose.mirrored else []
    parts += [f"turned by {pose.degrees:.0f} degrees"] if abs(pose.degrees) > 0.5 else []
    return ", ".join(parts)
