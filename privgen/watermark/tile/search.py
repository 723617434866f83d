"""Find the marks of keys in images, in any pose: cropped, bordered, scaled, turned, mirrored or stretched.

Seven searches follow each other, from poses that are likely to those that are not: the whole image where it was
marked; the same, mirrored or turned by quarters; slightly moved or cropped; all scales, upright; other aspect
ratios; all scales and angles; and the poses in which other keys were found. All but the first try mirror images and
quarter turns too. A key that is found is not searched for again.

With more than `MANY` keys, only those that are promising where marks are written are looked at; all of them, if there
is a search and none of the promising ones is found. All count in the p-values, whether they are looked at or not.

What does not depend on a key is done once for all keys: the spectrum, its samples, and how likely each pose is by the
energy that any periodic mark leaves in it (`line_energy`). The more keys there are, the fewer poses are tried for
each, the likeliest ones. Where the lattice of poses is large, low harmonics are read first, and all harmonics only
around the best poses.

For the published idea of a keyed pattern that a matched filter finds at any shift, see Cox, Kilian, Leighton and
Shamoon, "Secure spread spectrum watermarking for multimedia" (IEEE Transactions on Image Processing 6(12), 1997).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from privgen.errors import UsageError
from privgen.watermark.tile.in_place import EXACTLY, IN_PLACE_BANDS, NEARLY, Offset, correlate_in_place
from privgen.watermark.tile.lattice import Effort, Scores, coarse_to_fine, likeliest, try_all
from privgen.watermark.tile.p_values import ELSEWHERE, IN_PLACE, corrected
from privgen.watermark.tile.pattern import FACES, PLACES, Face, Pattern
from privgen.watermark.tile.poses import BesideScale, Poses, any_angle, as_is, near_as_is, stretched, upright
from privgen.watermark.tile.read import BANDS, TilePose, read_pose
from privgen.watermark.tile.spectrum import Spectrum, spectrum_of
from privgen.watermark.tile.templates import MANY, Templates


FPR = 1e-6
"""A key whose p-value is not above this is not searched for any further."""

_PERHAPS = 0.01  # a mark of a smaller p-value, corrected for the keys, is read as well as can be
_UPRIGHT, _UPRIGHT_LEAST = Effort(10_000, 10_000), Effort(1_000, 24)
_ANY_ANGLE, _ANY_ANGLE_LEAST = Effort(10_000, 150), Effort(200, 30)
_STRETCHED, _STRETCHED_LEAST = Effort(1_000, 60), Effort(100, 20)
_NEARLY_KEYS, _MOVED_KEYS = 2, 1  # of the promising ones of many keys, how many are looked at in later searches
_KEYS_AT_ONCE = 512


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
            best, so more than half agree by chance, about 38 of 48 after a search: decide by the p-value.
        logits: (n_bits,) float32; one is above 0 where 1 was read, and its size is in standard deviations.
        pose: how the marked image lies in this one.
        evidence: (M,) complex64, the image's spectrum at the harmonics of the tile as it was written.
    """

    key: str
    key_id: str
    z: float
    p_value: float
    bits: str
    matches: int
    logits: Tensor
    pose: TilePose
    evidence: Tensor = field(repr=False)


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
    templates = Templates(patterns, len(patterns))
    looks = [find_tiles(pixels, templates, search=search, fpr=fpr) for pixels in images]
    return [[found.match(k, pattern) for k, pattern in enumerate(patterns)] for found in looks]


class FoundTiles:
    """What a search found in one image.

    Attributes:
        p_values: (K,) of the keys; see `TileMatch.p_value`. 1 for keys that were not looked at.
    """

    def __init__(self, spectrum: Spectrum, found: Mapping[int, "_Found"], keys: int, fpr: float) -> None:
        self._spectrum, self._found = spectrum, found
        self._perhaps = max(fpr, _PERHAPS / keys)
        self._nowhere = _Found(0.0, 1.0, as_is(spectrum.work), FACES[0])
        self.p_values = np.ones(keys)
        for k, best in found.items():
            self.p_values[k] = best.p_value

    def match(self, k: int, pattern: Pattern) -> TileMatch:
        """Return what the image says about key k, whose pattern is given."""
        return _match(self._spectrum, pattern, self._found.get(k, self._nowhere), self._perhaps)


def find_tiles(pixels: Tensor, templates: Templates, *, search: bool = True, fpr: float = FPR) -> FoundTiles:
    """Look for the marks of many keys in one image; see `detect_tiles`, which calls this for each image.

    Args:
        pixels: (3, H, W) in [0, 1].
        templates: of the keys, at least one.
        search: see `detect_tiles`.
        fpr: see `detect_tiles`.

    Raises:
        UsageError: a rate that is not in (0, 1).
        ValueError: an image of another shape or type.
    """
    if not 0 < fpr < 1:
        raise UsageError(f"expected a false-positive rate in (0, 1), got {fpr}")
    spectrum = spectrum_of(pixels)
    found = _Search(spectrum, templates, fpr / len(templates)).run(search)
    return FoundTiles(spectrum, found, len(templates), fpr)


class _Search:
    """The search for the marks of K keys in one image.

    Args:
        spectrum: of the image.
        templates: of the keys.
        enough: the p-value from which on a key is found.
    """

    def __init__(self, spectrum: Spectrum, templates: Templates, enough: float) -> None:
        self.spectrum, self.templates, self.enough = spectrum, templates, enough
        self.found: dict[int, _Found] = {}

    def run(self, search: bool) -> dict[int, _Found]:
        """Return the best that was found for each key that was looked at."""
        keys = range(len(self.templates))
        if len(keys) > MANY:
            self._look_at_promising()
            if not search or self._poses():
                return self.found
        work, total = self.spectrum.work, len(keys)
        self._look(keys, lambda some: self._in_place(some, FACES[:1], EXACTLY))
        self._look(keys, lambda some: self._in_place(some, FACES, NEARLY))
        self._look(keys, lambda some: self._all_of(some, near_as_is(work)))
        if search:
            effort = _UPRIGHT.for_keys(total, _UPRIGHT_LEAST)
            self._look(keys, lambda some: self._lattice(some, upright(work), effort, None))
            aspect = _STRETCHED.for_keys(total, _STRETCHED_LEAST)
            self._look(keys, lambda some: self._lattice(some, stretched(work), aspect, "stretch"))
            turned = _ANY_ANGLE.for_keys(total, _ANY_ANGLE_LEAST)
            self._look(keys, lambda some: self._lattice(some, any_angle(work), turned, "degrees"))
        if known := self._poses():
            self._look(keys, lambda some: self._all_of(some, Poses.joined(known)))
        return self.found

    def _look_at_promising(self) -> None:
        """Look for the promising ones of many keys where marks are written, for ever fewer until one is found."""
        upright = self.templates.upright(self.spectrum)
        templates = self.templates.each[upright, None].to(self.spectrum.plane.device)
        self._keep(upright, self._in_place(templates, FACES[:1], EXACTLY))
        if not self._poses():
            clearest = self._clearest(upright, _NEARLY_KEYS)
            nearly = {*clearest, *self.templates.turned(self.spectrum)}
            self._look(sorted(nearly), lambda some: self._in_place(some, FACES, NEARLY))
            if not self._poses():
                self._look(clearest[:_MOVED_KEYS], lambda some: self._all_of(some, near_as_is(self.spectrum.work)))

    def _clearest(self, keys: Sequence[int], most: int) -> list[int]:
        """Those of some keys, at most so many, that correlate best so far."""
        return sorted(keys, key=lambda k: -self.found[k].z)[:most]

    def _poses(self) -> list[Poses]:
        """The poses of the keys that are found."""
        return [best.pose for best in self.found.values() if best.p_value <= self.enough]

    def _look(self, keys: Sequence[int], searcher: Callable[[Tensor], list[_Found]]) -> None:
        """Look for those of some keys that are still missing; the searcher gets their templates, (k, 8, M)."""
        missing = [k for k in keys if k not in self.found or self.found[k].p_value > self.enough]
        for start in range(0, len(missing), _KEYS_AT_ONCE):
            some = missing[start : start + _KEYS_AT_ONCE]
            templates = self.templates.faces(some, self.spectrum.plane.device)
            self._keep(some, searcher(templates))

    def _keep(self, keys: Sequence[int], found: Sequence[_Found]) -> None:
        """Keep the best that was found for each of some keys."""
        for k, best in zip(keys, found, strict=True):
            self.found[k] = min(self.found.get(k, best), best, key=lambda item: (item.p_value, -item.z))

    def _in_place(self, templates: Tensor, faces: Sequence[Face], offsets: Sequence[Offset]) -> list[_Found]:
        """Try faces of some keys in the pose, and about at the shifts, of an image that shows all that was marked."""
        z, face = correlate_in_place(self.spectrum, templates, faces, offsets).max(1)
        part, pose = IN_PLACE if offsets == EXACTLY else ELSEWHERE, as_is(self.spectrum.work)
        tries = part * len(IN_PLACE_BANDS) * len(PLACES) * len(faces) * len(offsets)
        best = zip(z.tolist(), face.tolist(), strict=True)
        return [_Found(value, corrected(value, tries), pose, faces[number]) for value, number in best]

    def _all_of(self, templates: Tensor, poses: Poses) -> list[_Found]:
        return _found(try_all(self.spectrum, templates, poses))

    def _lattice(self, templates: Tensor, lattice: Poses, effort: Effort, finer: BesideScale | None) -> list[_Found]:
        poses = likeliest(self.spectrum, lattice, effort.poses)
        if not len(poses):
            return [_Found(0.0, 1.0, as_is(self.spectrum.work), FACES[0])] * len(templates)
        if finer is None and effort.candidates >= len(poses) * len(FACES):
            return self._all_of(templates, poses)
        return _found(coarse_to_fine(self.spectrum, templates, poses, effort.candidates, finer))


def _found(scores: Scores) -> list[_Found]:
    """The best of each key with its p-value, which is corrected for all poses, faces, shifts and bands."""
    best = zip(scores.z.tolist(), scores.face.tolist(), scores.row.tolist(), strict=True)
    tries = ELSEWHERE * len(BANDS) * scores.tries
    return [_Found(z, corrected(z, tries), scores.poses[row : row + 1], FACES[face]) for z, face, row in best]


def _match(spectrum: Spectrum, pattern: Pattern, best: _Found, perhaps: float) -> TileMatch:
    # The bits of a key that is not there mean nothing, so their pose need not be improved.
    reading = read_pose(spectrum, best.pose, pattern, best.face, move=best.p_value <= perhaps)
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
        evidence=reading.evidence,
    )
