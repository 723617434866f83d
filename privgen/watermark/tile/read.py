"""Read the marks of keys from the spectrum of an image: how strong they are, where they begin, and their bits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privgen.watermark.tile.pattern import HIGHEST, Face, Pattern, harmonics, undone
from privgen.watermark.tile.poses import TILES, Poses
from privgen.watermark.tile.spectrum import Spectrum, sample
from privgen.watermark.tile.wave import grid_of, harmonics_on


SHIFTS = 64
"""Shifts of the tile that are tried along each of its sides."""
BANDS = (12.0, HIGHEST)
"""Upper ends of the bands that are read, in cycles a tile. The lower one is for what lost its fine detail."""

_AT_ONCE = 2**19  # numbers of a grid that are transformed at a time; on a CPU they should stay in its cache
_ROUNDS = 4  # in which a pose is improved, each in smaller steps
_FINER_SHIFTS = 4  # times as many shifts are tried to read the bits


@dataclass(frozen=True)
class TilePose:
    """How the tile of a marked image lies in an image.

    Attributes:
        tile: side of the tile in pixels of the image.
        scale: the same over the side that it has in an image that was only resized. Crops are above 1, images with
            borders below.
        degrees: by which the marked image was turned counter-clockwise, -180..180.
        mirrored: whether it was mirrored, left to right, before it was turned.
        shift: where the central pixel of the image lies in a tile: across and down, in [0, 1).
    """

    tile: float
    scale: float
    degrees: float
    mirrored: bool
    shift: tuple[float, float]

    def __str__(self) -> str:
        parts = []
        if self.scale > 1.01:
            parts = [f"a part, {1 / self.scale:.0%} of the marked image's short side"]
        elif self.scale < 0.99:
            parts = [f"the marked image with something around it, {self.scale:.0%} of the short side"]
        parts += ["mirrored"] if self.mirrored else []
        parts += [f"turned by {self.degrees:.0f} degrees"] if abs(self.degrees) > 0.5 else []
        return ", ".join(parts) or "as it was marked"


def count_below(cycles: float) -> int:
    """Return how many of the `harmonics()` have less than so many cycles a tile, or just as many."""
    return int((np.hypot(*harmonics().T) <= cycles).sum())


@torch.no_grad()
def correlate(
    spectrum: Spectrum, poses: Poses, patterns: Sequence[Pattern], bands: Sequence[float], shifts: int
) -> Tensor:
    """Correlate patterns with an image in many poses, at all shifts.

    The image is sampled once for all patterns and bands.

    Args:
        spectrum: of the image.
        poses: N poses.
        patterns: K patterns.
        bands: upper ends of the bands that are read, in cycles a tile, in ascending order; the best one counts.
        shifts: along each side of the tile, more than two for each cycle.

    Returns:
        (K, N) float32, the largest correlation of each pattern in each pose, in standard deviations.
    """
    device = spectrum.plane.device
    counts = [count_below(band) for band in bands]
    templates = [pattern.template[: counts[-1]].conj().to(device) for pattern in patterns]
    best = torch.zeros(len(patterns), len(poses), device=device)
    at_once = max(1, _AT_ONCE // shifts**2)
    for start in range(0, len(poses), at_once):
        part = slice(start, start + at_once)
        values = sample(spectrum, poses[part].to(device), counts[-1])
        power = torch.view_as_real(values).square().sum(-1).cumsum(1)
        for k, template in enumerate(templates):
            products = values * template
            for count in counts:
                norm = power[:, count - 1].sqrt().clamp(min=1e-9)
                peak = grid_of(products[:, :count], shifts).flatten(1).amax(1) / norm
                best[k, part] = torch.maximum(best[k, part], peak)
    return best


@dataclass(frozen=True, eq=False)
class Reading:
    """What one pattern reads in one pose and at one shift.

    Attributes:
        z: correlation with the whole pattern, in standard deviations.
        logits: (n_bits,) float32, on the CPU: the same for each bit, positive for 1.
        pose: of the tile.
    """

    z: float
    logits: Tensor
    pose: TilePose


@torch.no_grad()
def read_pose(spectrum: Spectrum, pose: Poses, pattern: Pattern, face: Face) -> Reading:
    """Read the bits of a pattern near a pose.

    The pose, the shift and the band are moved uphill by the correlation with the key's own message, so z is not for
    p-values.

    Args:
        spectrum: of the image.
        pose: one pose.
        pattern: of the key.
        face: of the tile.
    """
    seen = pattern.face(*face)
    pose = pose.to(spectrum.plane.device)
    for _ in range(_ROUNDS):
        around = pose.finer()
        pose = around[correlate(spectrum, around, [seen], BANDS, SHIFTS)[0].argmax()[None]]
    return max((_read_bits(spectrum, pose, seen, face, band) for band in BANDS), key=lambda reading: reading.z)


def _read_bits(spectrum: Spectrum, pose: Poses, seen: Pattern, face: Face, band: float) -> Reading:
    """Read the bits of a face from the harmonics of a band, at the best shift."""
    device, count, fine = spectrum.plane.device, count_below(band), _FINER_SHIFTS * SHIFTS
    values = sample(spectrum, pose, count)[0]
    products = values * seen.noise[:count].conj().to(device)
    owner, signs = seen.owner[:count].to(device), (2 * seen.bits - 1).to(device)
    row, column = divmod(int(grid_of(products * signs[owner], fine).argmax()), fine)
    across, down = (wave[:count] for wave in harmonics_on(device))
    phase = 2 * math.pi / fine * (across * column + down * row)
    real = (products * torch.polar(torch.ones_like(phase), phase)).real
    power = torch.view_as_real(values).square().sum(-1)
    zeros = torch.zeros(len(signs), device=device)
    logits = zeros.index_add(0, owner, real) / zeros.index_add(0, owner, power).sqrt().clamp(min=1e-9)
    z = float((real * signs[owner]).sum() / power.sum().sqrt().clamp(min=1e-9))
    return Reading(z, logits.cpu(), _pose_of(spectrum, pose, face, (-column / fine, -row / fine)))


def _pose_of(spectrum: Spectrum, pose: Poses, face: Face, shift: tuple[float, float]) -> TilePose:
    tile = float(pose.tile) * math.sqrt(math.prod(spectrum.size) / math.prod(spectrum.work))
    degrees = (float(pose.degrees) + 90 * face[0] + 180) % 360 - 180
    across, down = undone(*shift, face)
    return TilePose(tile, TILES * tile / min(spectrum.size), degrees, face[1], (across % 1, down % 1))
