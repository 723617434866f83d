"""Find the marks of keys in images, in any pose: cropped, bordered, scaled, turned or mirrored.

Six searches follow each other, from poses that are likely to those that are not: the whole image where it was marked;
the same, mirrored or turned by quarters; slightly moved or cropped; all scales, upright; all scales and angles; and
the poses in which other keys were found. All but the first try mirror images and quarter turns too. A key that is
found is not searched for again. The search at any angle reads low harmonics in a coarse lattice of poses first, and
all harmonics around the best of these.

For the published idea of a keyed pattern that a matched filter finds at any shift, see Cox, Kilian, Leighton and
Shamoon, "Secure spread spectrum watermarking for multimedia" (IEEE Transactions on Image Processing 6(12), 1997).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from privgen.errors import UsageError
from privgen.watermark.tile.in_place import EXACTLY, NEARLY, Offset, correlate_in_place
from privgen.watermark.tile.p_values import SEARCHES, corrected
from privgen.watermark.tile.pattern import FACES, Face, Pattern
from privgen.watermark.tile.poses import COARSE_CYCLES, FINER, Poses, any_angle, as_is, near_as_is, upright
from privgen.watermark.tile.read import BANDS, SHIFTS, TilePose, correlate, read_pose
from privgen.watermark.tile.spectrum import Spectrum, spectrum_of


FPR = 1e-6
"""A key whose p-value is not above this is not searched for any further."""

_Searcher = Callable[[Spectrum, Poses, Sequence[Pattern]], list["_Found"]]
_CANDIDATES = 150  # poses of the coarse lattice that are looked at more closely, for each key
_COARSE_BAND, _COARSE_SHIFTS = COARSE_CYCLES - 0.1, 2 * COARSE_CYCLES


@dataclass(frozen=True, eq=False)
class TileMatch:
    """What one image says about the mark of one key.

    Attributes:
        key: name of the key.
        key_id: its public id.
        z: correlation with the key's pattern, in standard deviations, at the best pose that the search tried.
        p_value: probability that an image without the mark correlates so well with it in any of the poses that the
            search may try. It is corrected for all of these, and not for the number of keys.
        bits: the bits that were read, as text of 0 and 1.
        matches: how many of them agree with the key's message. They are read where the key's own pattern correlates
            best, so more than half agree by chance, about 36 of 48 after a search: decide by the p-value.
        logits: (n_bits,) float32; one is above 0 where 1 was read, and its size is in standard deviations.
        pose: how the marked image lies in this one.
    """

    key: str
    key_id: str
    z: float
    p_value: float
    bits: str
    matches: int
    logits: Tensor
    pose: TilePose


@dataclass(frozen=True, eq=False)
class _Found:
    """The best that the searches found for one key: its correlation, its corrected p-value, its pose and its face."""

    z: float
    p_value: float
    pose: Poses
    face: Face


def detect_tiles(
    images: Sequence[Tensor], patterns: Sequence[Pattern], *, search: bool = True, fpr: float = FPR
) -> list[list[TileMatch]]:
    """Look for the marks of keys in images.

    Example:
        >>> import torch
        >>> from privgen import Key
        >>> from privgen.watermark.tile.embed import mark_image
        >>> from privgen.watermark.tile.pattern import pattern_of
        >>> from privgen.watermark.tile.search import detect_tiles
        >>> pattern = pattern_of(Key.new("alice"))
        >>> marked = mark_image(torch.rand(3, 256, 256), pattern).pixels
        >>> [[match]] = detect_tiles([marked.flip(-1)], [pattern])
        >>> match.p_value < 1e-6, match.pose.mirrored
        (True, True)

    Args:
        images: each (3, H, W) in [0, 1], of any sizes, on any device.
        patterns: of the keys, at least one.
        search: look for crops and borders, and at all scales and angles. Otherwise only the whole image is found, at
            any size, mirrored or turned by quarters.
        fpr: a key is not searched for any further once its p-value times the number of keys is not above this.

    Returns:
        For each image a list with one match for each pattern, in their order.

    Raises:
        UsageError: no pattern, or a rate that is not in (0, 1).
        ValueError: an image of another shape or type.
    """
    if not patterns:
        raise UsageError("Name at least one key.")
    if not 0 < fpr < 1:
        raise UsageError(f"expected a false-positive rate in (0, 1), got {fpr}")
    return [_detect(spectrum_of(pixels), patterns, search, fpr / len(patterns)) for pixels in images]


def _detect(spectrum: Spectrum, patterns: Sequence[Pattern], search: bool, enough: float) -> list[TileMatch]:
    found = [_Found(0.0, 1.0, as_is(spectrum.work), FACES[0])] * len(patterns)

    def look(searcher: _Searcher, poses: Poses) -> None:
        """Look for the keys that are still missing."""
        missing = [k for k, best in enumerate(found) if best.p_value > enough]
        if missing:
            for k, best in zip(missing, searcher(spectrum, poses, [patterns[k] for k in missing]), strict=True):
                found[k] = min(found[k], best, key=lambda item: (item.p_value, -item.z))

    look(partial(_try_in_place, faces=FACES[:1], offsets=EXACTLY), as_is(spectrum.work))
    look(partial(_try_in_place, faces=FACES, offsets=NEARLY), as_is(spectrum.work))
    look(_try_all, near_as_is(spectrum.work))
    if search:
        look(_try_all, upright(spectrum.work))
        look(_coarse_to_fine, any_angle(spectrum.work))
    if known := [best.pose for best in found if best.p_value <= enough]:
        look(_try_all, Poses.joined(known))
    return [_match(spectrum, *pair) for pair in zip(patterns, found, strict=True)]


def _try_in_place(
    spectrum: Spectrum, poses: Poses, patterns: Sequence[Pattern], faces: Sequence[Face], offsets: Sequence[Offset]
) -> list[_Found]:
    """Try faces of some keys in the pose, and about at the shift, of an image that shows all that was marked."""
    found, tries = [], SEARCHES * len(faces) * len(offsets) * len(BANDS)
    for scores in correlate_in_place(spectrum, patterns, faces, offsets):
        z = float(scores.max())
        found.append(_Found(z, corrected(z, tries), poses, faces[int(scores.argmax())]))
    return found


def _try_all(spectrum: Spectrum, poses: Poses, patterns: Sequence[Pattern]) -> list[_Found]:
    """Try all faces of some keys in all poses."""
    found, tries = [], _tries(poses)
    for scores in _scores(spectrum, poses, patterns, BANDS, SHIFTS):
        face, row = divmod(int(scores.argmax()), len(poses))
        z = float(scores[face, row])
        found.append(_Found(z, corrected(z, tries), poses[row : row + 1], FACES[face]))
    return found


def _coarse_to_fine(spectrum: Spectrum, lattice: Poses, patterns: Sequence[Pattern]) -> list[_Found]:
    """Try the poses that the best ones of a coarse lattice stand for."""
    found, tries = [], _tries(lattice) * FINER**2
    coarse = _scores(spectrum, lattice, patterns, (_COARSE_BAND,), _COARSE_SHIFTS).flatten(1)
    for pattern, scores in zip(patterns, coarse.cpu(), strict=True):
        best = scores.topk(min(_CANDIDATES, len(scores))).indices
        candidates = []
        for i in (best // len(lattice)).unique().tolist():
            poses = lattice[best[best // len(lattice) == i] % len(lattice)].finer()
            fine = correlate(spectrum, poses, [pattern.face(*FACES[i])], BANDS, SHIFTS)[0]
            z, row = float(fine.max()), int(fine.argmax())
            candidates.append(_Found(z, corrected(z, tries), poses[row : row + 1], FACES[i]))
        found.append(max(candidates, key=lambda item: item.z))
    return found


def _scores(
    spectrum: Spectrum, poses: Poses, patterns: Sequence[Pattern], bands: Sequence[float], shifts: int
) -> Tensor:
    """The largest correlations (K, 8, N) of K keys over all shifts, for each face and pose."""
    faces = [pattern.face(*face) for pattern in patterns for face in FACES]
    return correlate(spectrum, poses, faces, bands, shifts).unflatten(0, (len(patterns), len(FACES)))


def _tries(poses: Poses) -> int:
    """How many correlations the p-values of poses are corrected for."""
    return SEARCHES * len(poses) * len(FACES) * len(BANDS) * SHIFTS**2


def _match(spectrum: Spectrum, pattern: Pattern, best: _Found) -> TileMatch:
    reading = read_pose(spectrum, best.pose, pattern, best.face)
    bits = (reading.logits > 0).long()
    return TileMatch(
        key=pattern.name,
        key_id=pattern.key_id,
        z=best.z,
        p_value=best.p_value,
        bits="".join(map(str, bits.tolist())),
        matches=int((bits == pattern.bits).sum()),
        logits=reading.logits,
        pose=reading.pose,
    )
