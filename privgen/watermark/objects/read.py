"""Say which part of an image belongs to which key, without a mask."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privgen.errors import UsageError
from privgen.watermark.key import Key
from privgen.watermark.objects.place import TILES
from privgen.watermark.objects.windows import window_evidence, windows_of
from privgen.watermark.read.p_values import adjust
from privgen.watermark.tile.p_values import normal_tail
from privgen.watermark.tile.pattern import Pattern, pattern_of
from privgen.watermark.tile.spectrum import check_image, whitened, working_copy


FPR = 1e-6
"""Probability that some key is found in an image without marks, if nothing else is asked for."""


@dataclass(frozen=True, eq=False)
class Located:
    """Where the mark of one key is in one image.

    Attributes:
        key: name of the key.
        key_id: its public id.
        box: left, top, right and bottom edge of the part that belongs to the key, as fractions of the image's width
            and height; of the best window if the key is not detected.
        mask: (h, w) in [0, 1], of the shape of the image: where the mark is.
        p_value: probability that some key is found as clearly in an image without marks; corrected for all windows,
            poses and keys (Holm).
        bits: that were read in the box, as text of 0 and 1.
        matches: how many of them agree with the key's.
        detected: whether p_value is at most the rate that was asked for.
    """

    key: str
    key_id: str
    box: tuple[float, float, float, float]
    mask: Tensor
    p_value: float
    bits: str
    matches: int
    detected: bool


@torch.no_grad()
def locate(pixels: Tensor, keys: Sequence[Key], *, search: bool = False, fpr: float = FPR) -> list[Located]:
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
    if not keys:
        raise UsageError("Name at least one key.")
    if not 0 < fpr < 1:
        raise UsageError(f"expected a false-positive rate in (0, 1), got {fpr}")
    patterns = [pattern_of(key) for key in keys]
    templates = torch.stack([pattern.template for pattern in patterns])
    evidence = whitened(working_copy(check_image(pixels)))
    size = (evidence.shape[0], evidence.shape[1])
    windows = windows_of(size)
    z, places = [], []
    for tiles in TILES:
        rows = window_evidence(evidence, windows, min(size) / tiles)
        z.append(torch.view_as_real(templates).flatten(1) @ torch.view_as_real(rows).flatten(1).T)
        places.append(rows)
    best, place = torch.cat(z, dim=1).max(1)
    tries = len(TILES) * len(windows.boxes)
    p_values = adjust(np.array([min(1.0, tries * normal_tail(value)) for value in best.tolist()]), "holm")
    found = []
    rows = torch.cat(places)
    for pattern, at, p in zip(patterns, place.tolist(), p_values.tolist(), strict=True):
        bits = _bits(rows[at], pattern)
        box = windows.box(at % len(windows.boxes))
        mask = torch.zeros(64, 64)
        left, top, right, bottom = (round(64 * edge) for edge in box)
        mask[top:bottom, left:right] = 1
        matches = int((bits == pattern.bits).sum())
        text = "".join(map(str, bits.tolist()))
        found.append(Located(pattern.name, pattern.key_id, box, mask, p, text, matches, p <= fpr))
    return found


def _bits(values: Tensor, pattern: Pattern) -> Tensor:
    """The bits that a window reads."""
    real = (values * pattern.noise.conj()).real
    return (torch.zeros(len(pattern.bits)).index_add(0, pattern.owner, real) > 0).long()


def read_back(pixels: Tensor, keys: Sequence[Key]) -> list[Located]:
    """Locate marks that were just written."""
    return locate(pixels, keys)
