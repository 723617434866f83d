"""Search a lattice of poses for the marks of many keys: the likeliest poses roughly, the best of these closely."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privgen.watermark.tile.pattern import FACES
from privgen.watermark.tile.poses import COARSE_CYCLES, BesideScale, Poses
from privgen.watermark.tile.read import BANDS, SHIFTS, Samples, best_shifts, correlate, parts, prepared, sampled
from privgen.watermark.tile.spectrum import Spectrum, line_energy


_COARSE_BAND, _COARSE_SHIFTS = COARSE_CYCLES - 0.1, 2 * COARSE_CYCLES
_KEYS_AT_ONCE, _CANDIDATES_AT_ONCE = 32, 64


@dataclass(frozen=True)
class Effort:
    """How much a search does for each key.

    Attributes:
        poses: of the lattice that are tried, the likeliest.
        candidates: poses, each with one of its faces, that are looked at closely.
    """

    poses: int
    candidates: int

    def for_keys(self, keys: int, least: "Effort") -> "Effort":
        """Return the effort for each of some keys, if this is that for all of them; not less than another."""
        return Effort(max(self.poses // keys, least.poses), max(self.candidates // keys, least.candidates))


@dataclass(frozen=True, eq=False)
class Scores:
    """The best of each key.

    Attributes:
        z: (K,) correlations, in standard deviations.
        face: (K,) places in `FACES`.
        row: (K,) rows of `poses`.
        poses: all poses that could have been tried.
    """

    z: Tensor
    face: Tensor
    row: Tensor
    poses: Poses

    @property
    def tries(self) -> int:
        """How many correlations, of one band, each key could have had."""
        return len(self.poses) * len(FACES) * SHIFTS**2


def likeliest(spectrum: Spectrum, lattice: Poses, most: int) -> Poses:
    """Return the poses of a lattice, at most so many, that `line_energy` finds likeliest."""
    if len(lattice) <= most:
        return lattice
    rows = line_energy(spectrum, lattice).topk(most).indices.sort().values
    return lattice[rows.cpu()]


def try_all(spectrum: Spectrum, templates: Tensor, poses: Poses) -> Scores:
    """Try all faces of some keys in all poses.

    Args:
        spectrum: of the image.
        templates: (K, 8, M) complex64, of K patterns with all their faces, on the device of the spectrum.
        poses: N poses.
    """
    z, place = _scores(spectrum, templates, poses, BANDS, SHIFTS).max(1)
    return Scores(z, place // len(poses), place % len(poses), poses)


def coarse_to_fine(
    spectrum: Spectrum,
    templates: Tensor,
    lattice: Poses,
    candidates: int,
    finer: BesideScale | None,
) -> Scores:
    """Try all faces of some keys in the poses of a lattice by low harmonics, and the best by all harmonics.

    Args:
        spectrum: see `try_all`, as for `templates`.
        templates: see `spectrum`.
        lattice: of poses.
        candidates: for each key, poses with one face, that are tried by all harmonics.
        finer: what changes besides the scale in the poses that each pose of a coarse lattice stands for, which are
            tried by all harmonics; None for a fine lattice.
    """
    coarse = _scores(spectrum, templates, lattice, (_COARSE_BAND,), _COARSE_SHIFTS)
    best = coarse.topk(min(candidates, coarse.shape[1])).indices
    face, row = best // len(lattice), best % len(lattice)
    poses = lattice if finer is None else lattice.finer(finer)
    blocks = zip(*(block.split(_KEYS_AT_ONCE) for block in (templates, face, row)), strict=True)
    each = len(poses) // len(lattice)
    pairs = [_closely(spectrum, some, (faces, rows), poses, each) for some, faces, rows in blocks]
    z, number = (torch.cat(several) for several in zip(*pairs, strict=True))
    z, candidate = z.max(1, keepdim=True)
    return Scores(z[:, 0], face.gather(1, candidate)[:, 0], number.gather(1, candidate)[:, 0], poses)


def _scores(spectrum: Spectrum, templates: Tensor, poses: Poses, bands: Sequence[float], shifts: int) -> Tensor:
    """The largest correlations over all shifts, (K, 8 * N) on the CPU: of all faces, and for each of N poses."""
    several = templates.flatten(0, 1).split(_KEYS_AT_ONCE * len(FACES))
    scores = torch.cat([correlate(spectrum, poses, some, bands, shifts) for some in several])
    return scores.view(len(templates), -1).cpu()


def _closely(
    spectrum: Spectrum, templates: Tensor, candidates: tuple[Tensor, Tensor], poses: Poses, each: int
) -> tuple[Tensor, Tensor]:
    """Correlate C candidates of each of K keys with all harmonics.

    Args:
        spectrum: of the image.
        templates: (K, 8, M) of the keys.
        candidates: (K, C) faces and (K, C) rows of the lattice.
        poses: `each` of them for each row of the lattice.
        each: see `poses`.

    Returns:
        (K, C) largest correlations, and (K, C) the rows of `poses` that have them.
    """
    device, (face, row) = spectrum.plane.device, candidates
    ready = prepared(templates.flatten(0, 1), BANDS, SHIFTS)
    template = (face + len(FACES) * torch.arange(len(face), device="cpu")[:, None]).flatten()
    rows = row.flatten()
    z, number = torch.zeros(len(rows), dtype=torch.float32, device="cpu"), torch.zeros_like(rows)
    for batch in rows.argsort().split(_CANDIDATES_AT_ONCE):  # neighbours share samples
        needed, place = rows[batch].unique(return_inverse=True)
        numbers = needed[:, None] * each + torch.arange(each, device="cpu")
        samples = sampled(spectrum, poses[numbers.flatten()], BANDS, SHIFTS)
        half, norm = (values.unflatten(0, (-1, each)) for values in (samples.half, samples.norm))
        for part in parts(len(batch), each * SHIFTS**2, device):
            chosen = place[part].to(device)
            peaks = best_shifts(Samples(half[chosen], norm[chosen]), ready[template[batch[part]].to(device), None])
            best, which = peaks.cpu().max(1)
            z[batch[part]], number[batch[part]] = best, numbers[place[part], which]
    return z.view(row.shape), number.view(row.shape)
