"""Find the marks of keys in images, in any pose: cropped, bordered, scaled, turned or mirrored.

Four searches follow each other, from poses that are likely to those that are not: the image as it is (mirrored, and
turned by quarters, too); all scales, upright; all scales and angles; and, for each key, the poses in which other keys
were found. A key that is found is not searched for again. The search at any angle reads low harmonics in a coarse
lattice of poses first, and all harmonics around the best of these.

For the published idea of a keyed pattern that a matched filter finds at any shift, see Cox, Kilian, Leighton and
Shamoon, "Secure spread spectrum watermarking for multimedia" (IEEE Transactions on Image Processing 6(12), 1997).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privgen.errors import UsageError
from privgen.watermark.tile.p_values import SEARCHES, corrected
from privgen.watermark.tile.pattern import Pattern
from privgen.watermark.tile.poses import COARSE_CYCLES, FINER, Poses, any_angle, as_is, upright
from privgen.watermark.tile.read import BANDS, SHIFTS, TilePose, correlate, read_pose
from privgen.watermark.tile.spectrum import Spectrum, spectrum_of


FPR = 1e-6
"""A key whose p-value is not above this is not searched for any further."""

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
        matches: how many of them agree with the key's message.
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
    """The best that the searches found for one key: its correlation, its corrected p-value, and its pose."""

    z: float
    p_value: float
    pose: Poses


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
        ValueError: an image of another shape.
    """
    if not patterns:
        raise UsageError("Name at least one key.")
    if not 0 < fpr < 1:
        raise UsageError(f"expected a false-positive rate in (0, 1), got {fpr}")
    return [_detect(spectrum_of(pixels), patterns, search, fpr / len(patterns)) for pixels in images]


def _detect(spectrum: Spectrum, patterns: Sequence[Pattern], search: bool, enough: float) -> list[TileMatch]:
    nothing = _Found(0.0, 1.0, as_is(spectrum.work)[:1])
    found = [nothing] * len(patterns)

    def look(poses: Poses | None) -> None:
        """Look for the keys that are missing; None are the poses of any angle."""
        missing = [k for k, best in enumerate(found) if best.p_value > enough]
        wanted = [patterns[k] for k in missing]
        if wanted:
            results = _any_angle(spectrum, wanted) if poses is None else _try_all(spectrum, poses, wanted)
            for k, best in zip(missing, results, strict=True):
                found[k] = min(found[k], best, key=lambda item: item.p_value)

    look(as_is(spectrum.work))
    if search:
        look(upright(spectrum.work))
        look(None)
    known = [best.pose for best in found if best.p_value <= enough]
    if known:
        look(_joined(known))
    return [_match(spectrum, *pair) for pair in zip(patterns, found, strict=True)]


def _any_angle(spectrum: Spectrum, patterns: Sequence[Pattern]) -> list[_Found]:
    """Coarse to fine: of the best poses of the coarse lattice, the fine ones that each of them stands for."""
    lattice = any_angle(spectrum.work)
    coarse = correlate(spectrum, lattice, patterns, (_COARSE_BAND,), _COARSE_SHIFTS).cpu()
    found = []
    for pattern, scores in zip(patterns, coarse, strict=True):
        best = lattice[scores.topk(min(_CANDIDATES, len(lattice))).indices]
        found += _try_all(spectrum, best.finer(), [pattern], among=len(lattice) * FINER**2)
    return found


def _try_all(
    spectrum: Spectrum, poses: Poses, patterns: Sequence[Pattern], *, among: int | None = None
) -> list[_Found]:
    """Try poses, which were chosen `among` so many."""
    tries = SEARCHES * (among or len(poses)) * len(BANDS) * SHIFTS**2
    scores = correlate(spectrum, poses, patterns, BANDS, SHIFTS)
    best = [(float(row.max()), row.argmax()[None].cpu()) for row in scores]
    return [_Found(z, corrected(z, tries), poses[row]) for z, row in best]


def _joined(poses: Sequence[Poses]) -> Poses:
    return Poses(*(torch.cat(parts) for parts in zip(*((p.tile, p.degrees, p.mirrored, p.step) for p in poses), strict=True)))


def _match(spectrum: Spectrum, pattern: Pattern, best: _Found) -> TileMatch:
    reading = read_pose(spectrum, best.pose, pattern)
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
