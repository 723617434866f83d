"""Read the marks of keys from the spectrum of an image: how strong they are, where they begin, and their bits."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from privgen.watermark.tile.pattern import HIGHEST, Face, Pattern, count_below, undone, without_face
from privgen.watermark.tile.poses import BESIDE_SCALE, TILES, Poses
from privgen.watermark.tile.spectrum import Spectrum, sample
from privgen.watermark.tile.wave import grid_of, half_plane, harmonics_on, laid_out


SHIFTS = 64
"""Shifts of the tile that are tried along each of its sides."""
BANDS = (12.0, HIGHEST)
"""Upper ends of the bands that are read, in cycles a tile. The lower one is for what lost its fine detail."""

_AT_ONCE = {"cpu": 2**18}  # numbers of grids that are transformed at a time; on a CPU they should stay in its cache
_AT_ONCE_ELSEWHERE = 2**24
_ROUNDS = 4  # in which a pose is improved, each in smaller steps
_FINER_SHIFTS = 4  # times as many shifts are tried to read the bits


@dataclass(frozen=True)
class TilePose:
    """How the tile of a marked image lies in an image.

    Attributes:
        tile: side of the tile in pixels of the image; if it was stretched, of a square of the same area.
        scale: the same over the side that it has in an image that was only resized. Crops are above 1, images with
            borders below.
        degrees: by which the marked image was turned counter-clockwise, -180..180.
        mirrored: whether it was mirrored, left to right, before it was turned.
        shift: where the central pixel of the image lies in a tile: across and down, in [0, 1).
        stretch: by how much more the image was then stretched in width than in height.
    """

    tile: float
    scale: float
    degrees: float
    mirrored: bool
    shift: tuple[float, float]
    stretch: float = 1.0

    def __str__(self) -> str:
        parts = []
        if self.scale > 1.01:
            parts = [f"a part, {1 / self.scale:.0%} of the marked image's short side"]
        elif self.scale < 0.99:
            parts = [f"the marked image with something around it, {self.scale:.0%} of the short side"]
        parts += ["mirrored"] if self.mirrored else []
        parts += [f"turned by {self.degrees:.0f} degrees"] if abs(self.degrees) > 0.5 else []
        parts += [f"{self.stretch:.2f} times as wide"] if abs(self.stretch - 1) > 0.01 else []
        return ", ".join(parts) or "as it was marked"


@dataclass(frozen=True, eq=False)
class Samples:
    """An image's spectrum where tiles in N poses have their harmonics, ready to be correlated at all shifts.

    Attributes:
        half: (..., shifts, shifts // 2 + 1) complex64, laid out for transforms.
        norm: (..., B) float32, what a correlation in each of B bands is divided by.
    """

    half: Tensor
    norm: Tensor


def sampled(spectrum: Spectrum, poses: Poses, bands: Sequence[float], shifts: int) -> Samples:
    """Sample a spectrum for `best_shifts`. The arguments are those of `correlate`."""
    counts = [count_below(band) for band in bands]
    values = sample(spectrum, poses.to(spectrum.plane.device), counts[-1])
    power = torch.view_as_real(values).square().sum(-1)
    norm = torch.stack([power[:, :count].sum(1) for count in counts], dim=1)
    return Samples(laid_out(values, shifts), norm.sqrt().clamp(min=1e-9))


def prepared(templates: Tensor, bands: Sequence[float], shifts: int) -> Tensor:
    """Lay templates out for `best_shifts`.

    Args:
        templates: (K, M) complex64, see `Pattern.template`.
        bands: see `correlate`.
        shifts: see `correlate`.

    Returns:
        (K, B, shifts, shifts // 2 + 1) complex64.
    """
    return torch.stack([half_plane(templates[:, : count_below(band)].conj(), shifts) for band in bands], dim=1)


def best_shifts(samples: Samples, template: Tensor) -> Tensor:
    """Return the largest correlation (...) over all shifts and bands, in standard deviations.

    Args:
        samples: of any shape.
        template: of `prepared`, (..., B, shifts, shifts // 2 + 1); leading dimensions are broadcast.
    """
    shifts, peaks = template.shape[-2], []
    for band in range(template.shape[-3]):
        grid = torch.fft.irfft2(samples.half * template[..., band, :, :], s=(shifts, shifts))
        peaks.append(grid.flatten(-2).amax(-1) / samples.norm[..., band])
    return torch.stack(peaks).amax(0)


def parts(count: int, numbers: int, device: torch.device) -> Iterator[slice]:
    """Yield slices of things that are best transformed at a time, each of so many numbers."""
    at_once = max(1, _AT_ONCE.get(device.type, _AT_ONCE_ELSEWHERE) // numbers)
    for start in range(0, count, at_once):
        yield slice(start, start + at_once)


@torch.no_grad()
def correlate(spectrum: Spectrum, poses: Poses, templates: Tensor, bands: Sequence[float], shifts: int) -> Tensor:
    """Correlate patterns with an image in many poses, at all shifts.

    The image is sampled once for all patterns and bands.

    Args:
        spectrum: of the image.
        poses: N poses.
        templates: (K, M) complex64 of K patterns, on the device of the spectrum; see `Pattern.template`.
        bands: upper ends of the bands that are read, in cycles a tile, in ascending order; the best one counts.
        shifts: along each side of the tile, more than two for each cycle.

    Returns:
        (K, N) float32, the largest correlation of each pattern in each pose, in standard deviations.
    """
    device, ready = spectrum.plane.device, prepared(templates, bands, shifts)
    best = torch.zeros(len(templates), len(poses), dtype=torch.float32, device=device)
    for part in parts(len(poses), shifts**2, device):
        samples = sampled(spectrum, poses[part], bands, shifts)
        for k, template in enumerate(ready):
            best[k, part] = best_shifts(samples, template)
    return best


@dataclass(frozen=True, eq=False)
class Reading:
    """What one pattern reads in one pose and at one shift.

    Attributes:
        z: correlation with the whole pattern, in standard deviations.
        logits: (n_bits,) float32, on the CPU: the same for each bit, positive for 1.
        pose: of the tile.
        evidence: (M,) complex64, on the CPU: the spectrum at the harmonics of the tile as it was written, neither
            turned nor mirrored nor shifted.
    """

    z: float
    logits: Tensor
    pose: TilePose
    evidence: Tensor


@torch.no_grad()
def read_pose(spectrum: Spectrum, pose: Poses, pattern: Pattern, face: Face, *, move: bool = True) -> Reading:
    """Read the bits of a pattern near a pose.

    The pose, the shift and the band are moved uphill by the correlation with the key's own message, so z is not for
    p-values.

    Args:
        spectrum: of the image.
        pose: one pose.
        pattern: of the key.
        face: of the tile.
        move: move the pose too.
    """
    seen = pattern.face(*face)
    template = seen.template[None].to(spectrum.plane.device)
    for _ in range(_ROUNDS if move else 0):
        step = pose.step
        for beside_scale in BESIDE_SCALE:
            around = replace(pose, step=step).finer(beside_scale)
            pose = around[correlate(spectrum, around, template, BANDS, SHIFTS)[0].argmax()[None].cpu()]
    return max((_read_bits(spectrum, pose, seen, face, band) for band in BANDS), key=lambda reading: reading.z)


def _read_bits(spectrum: Spectrum, pose: Poses, seen: Pattern, face: Face, band: float) -> Reading:
    """Read the bits of a face from the harmonics of a band, at the best shift."""
    device, count, fine = spectrum.plane.device, count_below(band), _FINER_SHIFTS * SHIFTS
    every = sample(spectrum, pose.to(device), count_below(HIGHEST))[0]
    values = every[:count]
    products = values * seen.noise[:count].conj().to(device)
    owner, signs = seen.owner[:count].to(device), (2 * seen.bits - 1).to(device)
    row, column = divmod(int(grid_of(products * signs[owner], fine).argmax()), fine)
    across, down = harmonics_on(device)
    phase = 2 * math.pi / fine * (across * column + down * row).float()
    back = torch.polar(torch.ones_like(phase), phase)
    real = (products * back[:count]).real
    power = torch.view_as_real(values).square().sum(-1)
    zeros = torch.zeros(len(signs), dtype=torch.float32, device=device)
    logits = zeros.index_add(0, owner, real) / zeros.index_add(0, owner, power).sqrt().clamp(min=1e-9)
    z = float((real * signs[owner]).sum() / power.sum().sqrt().clamp(min=1e-9))
    place = _pose_of(spectrum, pose, face, (-column / fine, -row / fine))
    return Reading(z, logits.cpu(), place, without_face(every * back, face).cpu())


def _pose_of(spectrum: Spectrum, pose: Poses, face: Face, shift: tuple[float, float]) -> TilePose:
    tile = float(pose.tile) * math.sqrt(math.prod(spectrum.size) / math.prod(spectrum.work))
    degrees = (float(pose.degrees) + 90 * face[0] + 180) % 360 - 180
    across, down = undone(*shift, face)
    return TilePose(
        tile, TILES * tile / min(spectrum.size), degrees, face[1], (across % 1, down % 1), float(pose.stretch)
    )
