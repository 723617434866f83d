"""How the objects of one case were marked, and what is read of them after what happened to the image."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate, max_pool2d

from privgen.attacks import JPEG
from privgen.evaluation.objects.cases import Case
from privgen.evaluation.watermark.generation import as_saved
from privgen.io.pixels import resize
from privgen.watermark.key import Key
from privgen.watermark.objects.place import lattice_of
from privgen.watermark.objects.read import FPR, Located, locate
from privgen.watermark.objects.windows import bit_logits, evidence_of, whole_evidence
from privgen.watermark.tile.pattern import pattern_of


SEAM = 0.03
"""What is nearer to a mask than this fraction of the short side does not count as outside."""

_SCALES = (0.7, 1.4)
_NEAR = 0.1  # how far an area may be from its nominal one


@dataclass(frozen=True)
class Reading:
    """What was read of one image.

    Attributes:
        matches: for each object, bits of its key that were read in its place; half of them if it was not found.
        p_values: of the objects' keys, corrected for all windows, poses and keys.
        overlaps: for each object whose place counts, intersection over union of where it was found with its true mask;
            0 if it was not found.
        areas: of the objects, as fractions of the image.
        strangers: whether each key that owns nothing was found; empty if they were not looked for.
    """

    matches: tuple[int, ...]
    p_values: tuple[float, ...]
    overlaps: tuple[float, ...]
    areas: tuple[float, ...]
    strangers: tuple[bool, ...]

    def of_area(self, area: float) -> "Reading":
        """The same for those objects alone that cover about this fraction of the image."""
        some = [i for i, own in enumerate(self.areas) if abs(own / area - 1) < _NEAR]
        return Reading(
            tuple(self.matches[i] for i in some),
            tuple(self.p_values[i] for i in some),
            tuple(self.overlaps[i] for i in some),
            tuple(self.areas[i] for i in some),
            self.strangers,
        )


@dataclass(frozen=True)
class Written:
    """How the marks of one image were written.

    Attributes:
        qualities: in dB, inside the mask of each object; infinite where nothing could be written.
        mask_overlaps: for each object, intersection over union of the mask it was marked in with its true mask.
        background: for each object's key, the fraction of its bits that are read outside all masks.
        psnr_outside: quality away from the masks in dB; 100 where nothing changed at all.
    """

    qualities: tuple[float, ...]
    mask_overlaps: tuple[float, ...]
    background: tuple[float, ...]
    psnr_outside: float


def read(
    image: Tensor, truth: Tensor | None, keys: Sequence[Key], strangers: Sequence[Key], *, search: bool = False
) -> Reading:
    """Look for all keys of an image.

    Args:
        image: (3, H, W) in [0, 1].
        truth: (K, H, W), where the objects are; None if their places do not count.
        keys: of the objects.
        strangers: keys that own nothing in it.
        search: also look for objects that were moved.
    """
    return _reading(locate(image, [*keys, *strangers], search=search), truth, keys)


def read_alone(image: Tensor, truth: Tensor | None, keys: Sequence[Key], strangers: int) -> Reading:
    """Look for the owners' keys of an image in which objects were moved, and for no others.

    P-values are corrected as if as many strangers had been looked for, so those of this reading are never smaller than
    `read` would find. A search for a key that is nowhere takes thirty times as long as one for a key that is there.

    Args:
        image: see `read`.
        truth: see `read`.
        keys: see `read`.
        strangers: how many keys the correction counts beside the owners'.
    """
    factor = (len(keys) + strangers) / len(keys)
    found = locate(image, keys, search=True, fpr=FPR / factor)
    corrected = [replace(place, p_value=min(1.0, place.p_value * factor)) for place in found]
    return _reading(corrected, truth, keys)


def _reading(found: Sequence[Located], truth: Tensor | None, keys: Sequence[Key]) -> Reading:
    own, others = found[: len(keys)], found[len(keys) :]
    overlaps, areas = [], []
    for place, mask in zip(own, truth if truth is not None else (), strict=truth is not None):
        areas.append(float(mask.mean()))
        there = interpolate(place.mask[None, None].float(), size=tuple(mask.shape), mode="bilinear")[0, 0] >= 0.5
        overlaps.append(_overlap(there, mask >= 0.5) if place.detected else 0.0)
    bits = len(pattern_of(keys[0]).bits)
    return Reading(
        tuple(place.matches if place.detected else bits // 2 for place in own),
        tuple(place.p_value for place in own),
        tuple(overlaps),
        tuple(areas),
        tuple(place.detected for place in others),
    )


def jpeg(image: Tensor) -> Tensor:
    """The image after JPEG at quality 75."""
    saved: Tensor = JPEG(75)(image[None], generator=torch.Generator().manual_seed(0))[0]
    return as_saved(saved)


def crop_half(image: Tensor, truth: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Half of the area of an image and its masks, from a random place."""
    height, width = image.shape[1:]
    h, w = round(height * 0.5**0.5), round(width * 0.5**0.5)
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    return image[:, top : top + h, left : left + w], truth[:, top : top + h, left : left + w]


def pasted(case: Case, onto: Tensor, rng: np.random.Generator) -> Tensor:
    """The first object of a case, cut out by the mask it was marked in, scaled and pasted into another image."""
    mask = case.masks[0]
    rows, columns = torch.nonzero(mask.amax(1) >= 0.5).flatten(), torch.nonzero(mask.amax(0) >= 0.5).flatten()
    part = (slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1))
    cut, alpha = case.marked[:, part[0], part[1]], mask[part][None]
    height, width = onto.shape[1:]
    factor = min(float(rng.uniform(*_SCALES)), 0.98 * height / cut.shape[1], 0.98 * width / cut.shape[2])
    size = (max(1, round(cut.shape[1] * factor)), max(1, round(cut.shape[2] * factor)))
    both = resize(torch.cat([cut * alpha, alpha])[None], size)[0].clamp(0, 1)
    top, left = int(rng.integers(height - size[0] + 1)), int(rng.integers(width - size[1] + 1))
    result = onto.clone()
    area = result[:, top : top + size[0], left : left + size[1]]
    area.copy_(area * (1 - both[3:]) + both[:3])
    return as_saved(result)


def written(case: Case) -> Written:
    """Compare a case with its unmarked image and its true masks."""
    outside = _outside(case)
    pairs = zip(case.masks, case.truth, strict=True)
    overlaps = tuple(_overlap(mask >= 0.5, true >= 0.5) for mask, true in pairs)
    return Written(case.qualities, overlaps, tuple(_background(case, outside)), _psnr(case, outside))


def _outside(case: Case) -> Tensor:
    reach = max(1, round(SEAM * min(case.truth.shape[1:])))
    marked = case.masks.amax(0, keepdim=True)[None]
    return max_pool2d(marked, 2 * reach + 1, 1, reach)[0, 0] < 0.5


def _psnr(case: Case, where: Tensor) -> float:
    """In dB; 100 where nothing changed at all."""
    power = float((case.marked - case.plain)[:, where].square().mean()) if bool(where.any()) else 0.0
    return min(100.0, -10 * float(np.log10(power))) if power > 0 else 100.0


def _background(case: Case, where: Tensor) -> list[float]:
    """Fraction of each key's bits that are read outside all masks, where its mark is not."""
    evidence = evidence_of(case.marked)
    size = (evidence.shape[0], evidence.shape[1])
    free = interpolate(where[None, None].float(), size=size, mode="nearest")[0, 0]
    values = whole_evidence(evidence * free, lattice_of(size).tile(size)).cpu()
    found = []
    for key in case.keys:
        pattern = pattern_of(key)
        logits = bit_logits(values, pattern.noise, pattern.owner, len(pattern.bits))
        found.append(float(((logits > 0).long() == pattern.bits).float().mean()))
    return found


def _overlap(a: Tensor, b: Tensor) -> float:
    return float((a & b).sum() / (a | b).sum().clamp(min=1))
