"""Say which part of an image belongs to which key, without a mask."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from privgen.errors import UsageError
from privgen.watermark.key import Key
from privgen.watermark.objects.outline import Outline, outline_of
from privgen.watermark.objects.place import LATTICES, lattice_of
from privgen.watermark.objects.search import ObjectSearch, Pasted, in_words
from privgen.watermark.objects.windows import (
    Windows,
    bit_logits,
    evidence_of,
    whole_evidence,
    window_evidence,
    windows_of,
)
from privgen.watermark.read.p_values import adjust
from privgen.watermark.tile.pattern import Pattern, count_below, pattern_of
from privgen.watermark.tile.payload import read_payload
from privgen.watermark.tile.templates import ROUGH
from privgen.watermark.tile.wave import sheet


FPR = 1e-6
"""Probability that some key is found in an image without marks, if nothing else is asked for."""

_MANY, _KEPT = 1_000, 100  # with more keys than that, only so many are looked at in all windows
_CLEAR = 1.4  # a search ends with a correlation of so many times what suffices
_LOW = 17.0  # cycles a tile; half of the harmonics are below


@dataclass(frozen=True, eq=False)
class Located:
    """Where the mark of one key is in one image.

    Attributes:
        key: name of the key.
        key_id: its public id.
        box: left, top, right and bottom edge of the part that belongs to the key, as fractions of the image's width
            and height; of the best window if the key is not detected.
        mask: (h, w) of 0 and 1, where the mark is; of the shape of the image, with 64 pixels along the short side.
            All 0 if the key is not detected.
        heat: (h, w) in [0, 1], how clearly the mark is at each place.
        p_raw: probability that the key is found as clearly in an image without its mark; corrected for all windows
            and poses.
        p_value: the same, corrected for all keys, too (Holm).
        bits: that were read inside the mask, as text of 0 and 1; empty if the key is not detected.
        matches: how many of them agree with the key's.
        detected: whether p_value is at most the rate that was asked for.
        pose: in words, how the object lies in this image; None if it lies where it was marked.
        payload: the ID that the mark carries; None if it carries none that can be read.
    """

    key: str
    key_id: str
    box: tuple[float, float, float, float]
    mask: Tensor = field(repr=False)
    heat: Tensor = field(repr=False)
    p_raw: float
    p_value: float
    bits: str
    matches: int
    detected: bool
    pose: str | None = None
    payload: int | None = None


class Locations(Sequence[Located]):
    """What was found for each key, in the order of the keys.

    Of many keys, most are nowhere in an image. Their entries are made when you ask for them.

    Attributes:
        p_raw: (K,) of all keys; see `Located.p_raw`.
        detected: those of the keys that were found, by the number of the key.
    """

    def __init__(
        self, p_raw: NDArray[np.float64], detected: Mapping[int, Located], nowhere: Callable[[int], Located]
    ) -> None:
        self.p_raw, self.detected = p_raw, detected
        self._count, self._nowhere = len(p_raw), nowhere

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Located: ...

    @overload
    def __getitem__(self, index: slice) -> list[Located]: ...

    def __getitem__(self, index: int | slice) -> Located | list[Located]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(self._count))]
        k = range(self._count)[index]
        return self.detected[k] if k in self.detected else self._nowhere(k)


@torch.no_grad()
def locate(pixels: Tensor, keys: Sequence[Key], *, search: bool = False, fpr: float = FPR) -> Locations:
    """Say which part of an image belongs to which key.

    Args:
        pixels: (3, H, W) in [0, 1].
        keys: at least one.
        search: also look in crops, and for objects that were cut out, scaled or turned, and pasted.
        fpr: probability that some key is found in an image without marks.

    Returns:
        One entry for each key, in their order.

    Raises:
        UsageError: no key, or a rate that is not in (0, 1).
        ValueError: an image of another shape or type.
    """
    return Locator(keys, fpr)(pixels, search=search)


class Locator:
    """Looks for the marks of keys in parts of images.

    Args:
        keys: at least one.
        fpr: probability that some key is found in an image without marks.

    Raises:
        UsageError: no key, or a rate that is not in (0, 1).
    """

    def __init__(self, keys: Sequence[Key], fpr: float = FPR) -> None:
        if not keys:
            raise UsageError("Name at least one key.")
        if not 0 < fpr < 1:
            raise UsageError(f"expected a false-positive rate in (0, 1), got {fpr}")
        self.fpr, self.keys = fpr, tuple(keys)
        self.patterns = [pattern_of(key) for key in keys]
        self.templates = torch.stack([pattern.template for pattern in self.patterns])
        self.low = torch.view_as_real(self.templates[:, : count_below(_LOW)]).flatten(1).to(ROUGH)

    @torch.no_grad()
    def __call__(self, pixels: Tensor, *, search: bool = False) -> Locations:
        """Look for the keys in an image (3, H, W) in [0, 1]; see `locate`."""
        evidence = evidence_of(pixels)
        size = (evidence.shape[0], evidence.shape[1])
        windows = windows_of(size)
        rows = torch.stack([window_evidence(evidence, windows, lattice.tile(size)) for lattice in LATTICES])
        z, place = self._scores(rows, windows, size)
        # With a search there are two ways to be found, and each gets half of the rate.
        p_raw = chance(z, (2 if search else 1) * rows.shape[0] * rows.shape[1])
        pasted: dict[int, Pasted] = {}
        if search and (missing := [k for k, p in enumerate(p_raw.tolist()) if p * len(p_raw) > self.fpr]):
            searching = ObjectSearch(pixels)
            enough = _CLEAR * least_z(self.fpr / len(p_raw), 2 * searching.tries)
            for k, item in zip(missing, searching([self.patterns[k] for k in missing], enough), strict=True):
                p = float(chance(torch.tensor([item.z]), 2 * searching.tries)[0])
                if p < p_raw[k]:
                    p_raw[k], pasted[k] = p, item
        p_values = adjust(p_raw, "holm")

        def read_key(k: int) -> Located:
            pattern, p = self.patterns[k], float(p_values[k])
            lattice, window = divmod(int(place[k]), len(windows))
            start, tile = windows.pixels(window), LATTICES[lattice].tile(size)
            if p > self.fpr:
                outline = nowhere(pasted[k].window if k in pasted else start, size)
                return located(pattern, outline, (float(p_raw[k]), p), None)
            if k in pasted:
                outline, inside = _outline_of_pasted(searching, pasted[k], pattern, evidence)
            else:
                waves = sheet(self.templates[k].to(evidence.device), range(size[0]), size[1], tile)
                outline = outline_of(evidence, waves, tile, start)
                inside = _inside(evidence, pattern, tile, outline)
            payload = read_payload(self.keys[k], pattern, inside.values)
            return replace(located(pattern, outline, (float(p_raw[k]), p), inside), payload=payload)

        detected = {k: read_key(k) for k in np.flatnonzero(p_values <= self.fpr).tolist()}
        return Locations(p_raw, detected, read_key)

    def _scores(self, rows: Tensor, windows: Windows, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The largest correlation of each key, and where it is.

        Args:
            rows: (lattices, W, M) of evidence.
            windows: of the image.
            size: height and width of the evidence.

        Returns:
            (K,) correlations, and (K,) places: the number of the lattice times W, plus the window.
        """
        if len(self.templates) <= _MANY:
            return largest(self.templates, rows.flatten(0, 1))
        # All count in the p-values, but only the most promising keys are looked at closely.
        likely = torch.view_as_real(rows[LATTICES.index(lattice_of(size)), windows.coarse()]).flatten(1)
        likely = likely[:, : self.low.shape[1]]
        likely = likely / torch.linalg.vector_norm(likely, dim=1, keepdim=True).clamp(min=1e-9)
        best = (likely.to(ROUGH) @ self.low.to(rows.device).T).amax(0).float().topk(_KEPT).indices.cpu()
        z, place = torch.zeros(len(self.templates)), torch.zeros(len(self.templates), dtype=torch.int64)
        z[best], place[best] = largest(self.templates[best], rows.flatten(0, 1))
        return z, place


def largest(templates: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the largest correlation (K,) of each template with rows of evidence, and which row has it; on the CPU.

    Args:
        templates: (K, M) complex.
        rows: (W, M) complex, each of norm 1.
    """
    keys = torch.view_as_real(templates.to(rows.device)).flatten(1)
    z, place = (keys @ torch.view_as_real(rows).flatten(1).T).max(1)
    return z.cpu(), place.cpu()


def chance(z: Tensor, tries: int) -> NDArray[np.float64]:
    """Return the probabilities (K,) that the best of so many correlations is as large in an image without the mark."""
    tail = 0.5 * torch.special.erfc(z.double() / math.sqrt(2))
    return np.asarray((tries * tail).clamp(max=1).cpu().numpy())


def least_z(p_value: float, tries: int) -> float:
    """Return the least correlation whose `chance` is at most a p-value."""
    return -float(torch.special.ndtri(torch.tensor(p_value / tries, dtype=torch.float64)))


@dataclass(frozen=True, eq=False)
class Inside:
    """What is read inside an outline.

    Attributes:
        bits: (n_bits,).
        values: (M,), the evidence of the tile as written; of the code in latents, what was read of each bit.
        pose: in words, how the object lies.
    """

    bits: Tensor
    values: Tensor
    pose: str | None = None


def _inside(evidence: Tensor, pattern: Pattern, tile: float, outline: Outline) -> Inside:
    """Read inside the outline of an object that lies where it was marked."""
    mask = interpolate(outline.mask[None, None], size=tuple(evidence.shape), mode="bilinear", align_corners=False)
    values = whole_evidence(evidence * mask[0, 0].to(evidence.device), tile).cpu()
    logits = bit_logits(values, pattern.noise, pattern.owner, len(pattern.bits))
    return Inside((logits > 0).long(), values)


def _outline_of_pasted(
    searching: ObjectSearch, item: Pasted, pattern: Pattern, evidence: Tensor
) -> tuple[Outline, Inside]:
    """The outline of an object that a search found, and what is read inside."""
    size = (evidence.shape[0], evidence.shape[1])
    window = item.window
    for _ in range(2):  # the second time in the box alone
        reading = searching.read(replace(item, window=window), pattern)
        waves = searching.waves(reading, window, pattern)
        outline = outline_of(evidence, waves, reading.pose.tile, window)
        left, top, right, bottom = outline.box
        window = (int(left * size[1]), int(top * size[0]), math.ceil(right * size[1]), math.ceil(bottom * size[0]))
    pose = in_words(reading.pose, lattice_of(size).tile(size))
    return outline, Inside((reading.logits > 0).long(), reading.evidence, pose)


def nowhere(start: tuple[int, int, int, int], size: tuple[int, int]) -> Outline:
    """Return the outline of a key that is not there: the best window, and an empty mask.

    Args:
        start: left, top, right and bottom edge of the window, in pixels.
        size: height and width of the image, in the same pixels.
    """
    left, top, right, bottom = start
    box = (left / size[1], top / size[0], right / size[1], bottom / size[0])
    return Outline(box, torch.zeros(1, 1), torch.zeros(1, 1))


def located(
    pattern: Pattern,
    outline: Outline,
    p_values: tuple[float, float],
    inside: Inside | None,
) -> Located:
    """Sum up what was found of a key.

    Args:
        pattern: of the key.
        outline: of its mark.
        p_values: before and after the correction for all keys.
        inside: what is read inside; None if the key is not detected.
    """
    where = (outline.box, outline.mask, outline.heat)
    if inside is None:
        return Located(pattern.name, pattern.key_id, *where, *p_values, "", 0, False)
    text = "".join(map(str, inside.bits.tolist()))
    matches = int((inside.bits == pattern.bits).sum())
    return Located(pattern.name, pattern.key_id, *where, *p_values, text, matches, True, inside.pose)
