"""What writes and reads the marks of objects: one interface, and the carrier of tiles behind it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from privgen.watermark.key import Key
from privgen.watermark.objects.masks import at_size
from privgen.watermark.objects.place import lattice_of
from privgen.watermark.objects.read import locate
from privgen.watermark.objects.windows import bit_logits, evidence_of, whole_evidence
from privgen.watermark.tile.embed import amplitudes_of_mark, tolerated, weighted_waves
from privgen.watermark.tile.pattern import Pattern, pattern_of
from privgen.watermark.tile.payload import pattern_with


if TYPE_CHECKING:
    from privgen.watermark.objects.read import Located

LOUDEST, FAINTEST = 31.0, 37.0
"""Quality of tiles inside a mask, in dB, if nothing else is asked for: the first for objects of `FEW_PIXELS` and less,
the second for those of `MANY_PIXELS` and more, and between them by the logarithm of the number of pixels."""
FEW_PIXELS, MANY_PIXELS = 4_500, 13_000

_CLEAR = 4.0  # standard deviations; a bit that is read as clearly as this needs no more
_QUIETEST = 0.3  # gain of a bit, over that of a mark whose bits are all as loud


@dataclass(frozen=True, eq=False)
class Place:
    """Where a mark of an object is to be written, and how loud.

    Attributes:
        mask: (H, W) in [0, 1], where the object is, without what other objects cover.
        crop: the rows and columns of the image around it.
        psnr: quality inside the mask, in dB.
    """

    mask: Tensor
    crop: tuple[slice, slice]
    psnr: float


@dataclass(frozen=True, eq=False)
class Seen:
    """What a reader sees of an image, for all keys.

    Attributes:
        evidence: (h, w) for tiles, see `privgen.watermark.objects.windows.evidence_of`; (C, h, w) for the code in the
            latents, see `privgen.models.object_code.ObjectCode.field`.
        pixels: (3, H, W), the image, if `evidence` can be differentiated by it.
    """

    evidence: Tensor
    pixels: Tensor | None = None


class ObjectWriter(Protocol):
    """Writes the mark of one object into one image, in rounds: it is written, read back, and written better."""

    def residual(self) -> Tensor:
        """Return what the mark changes in the crop, (3, h, w), before it is scaled to a quality."""
        ...

    def balance(self, seen: Seen, gain: float) -> bool:
        """Make bits louder that are read badly, and others fainter, unless all are clear; say whether they are.

        Args:
            seen: what the carrier's `look` returned of the marked image.
            gain: factor by which the residual was multiplied.
        """
        ...


class ObjectCarrier(Protocol):
    """One way to write and to read the marks of objects."""

    payload: int | None
    """An ID that the marks carry besides the key; None is none."""

    @property
    def rounds(self) -> int:
        """How many times a mark is written, each time but the first after it was read back."""
        ...

    def quality(self, pixels: int) -> float:
        """Return the quality, in dB, of an object of so many pixels if nothing else is asked for."""
        ...

    def writer(self, plain: Tensor, place: Place, key: Key) -> ObjectWriter:
        """Return what writes a key's mark into an image (3, H, W) in [0, 1]."""
        ...

    def look(self, pixels: Tensor) -> Seen:
        """Return what a reader sees of an image (3, H, W) in [0, 1], for all keys."""
        ...

    def locate(self, pixels: Tensor, keys: Sequence[Key]) -> "Sequence[Located]":
        """Say which part of an image belongs to which key; see `privgen.watermark.objects.read.locate`."""
        ...

    def matches(self, seen: Seen, mask: Tensor, key: Key) -> int:
        """Count the bits of a key that are read inside a mask (H, W) that is known."""
        ...


class TileCarrier:
    """Writes tiles into pixels; see `privgen.watermark.tile`. It needs no network.

    Args:
        payload: an ID, 0..4294967295, that all of the marks carry, and that of the rest of the image, too; None is
            none.
    """

    rounds = 4

    def __init__(self, payload: int | None = None) -> None:
        self.payload = payload

    def quality(self, pixels: int) -> float:
        """Return the default quality; see `ObjectCarrier`."""
        rise = math.log(pixels / FEW_PIXELS) / math.log(MANY_PIXELS / FEW_PIXELS)
        return LOUDEST + (FAINTEST - LOUDEST) * min(max(rise, 0.0), 1.0)

    def writer(self, plain: Tensor, place: Place, key: Key) -> ObjectWriter:
        """Return what writes a key's mark; see `ObjectCarrier`."""
        return _TileWriter(plain, place, pattern_with(key, self.payload))

    def look(self, pixels: Tensor) -> Seen:
        """Return the evidence of an image; see `ObjectCarrier`."""
        return Seen(evidence_of(pixels))

    def locate(self, pixels: Tensor, keys: Sequence[Key]) -> "Sequence[Located]":
        """Say which part of an image belongs to which key; see `ObjectCarrier`."""
        return locate(pixels, keys)

    def matches(self, seen: Seen, mask: Tensor, key: Key) -> int:
        """Count the bits that are read; see `ObjectCarrier`."""
        return int((_clearness(seen.evidence, mask, pattern_of(key)) > 0).sum())


class _TileWriter:
    def __init__(self, plain: Tensor, place: Place, pattern: Pattern) -> None:
        self.place, self.pattern = place, pattern
        self.size = (plain.shape[1], plain.shape[2])
        self.lattice = lattice_of(self.size)
        self.weight = tolerated(plain[:, *place.crop])
        self.amplitudes = amplitudes_of_mark(self.pattern, self.lattice.slope, plain.device)
        self.gains = torch.ones(len(self.pattern.bits), device=plain.device)

    def residual(self) -> Tensor:
        tile = self.lattice.tile(self.size)
        amplitudes = self.amplitudes * self.gains[self.pattern.owner.to(self.gains.device)]
        rows, columns = self.place.crop
        start = (columns.start / tile % 1, rows.start / tile % 1)
        size = self.place.mask[self.place.crop].shape
        return weighted_waves(self.weight, (size[0], size[1]), amplitudes, tile, start)

    def balance(self, seen: Seen, gain: float) -> bool:
        clear = _clearness(seen.evidence, self.place.mask, self.pattern)
        if float(clear.min()) >= _CLEAR:
            return True
        mean = float(clear.mean().clamp(min=0.5))
        self.gains = (self.gains + ((mean - clear) / mean).to(self.gains)).clamp(_QUIETEST, 1 / _QUIETEST)
        self.gains /= self.gains.square().mean().sqrt()
        return False


def _clearness(evidence: Tensor, mask: Tensor, pattern: Pattern) -> Tensor:
    """How clearly each bit of a key is read inside a mask, in standard deviations; negative where it is read wrong."""
    size = (evidence.shape[0], evidence.shape[1])
    values = whole_evidence(evidence * at_size(mask, size), lattice_of(size).tile(size)).cpu()
    signs = (2 * pattern.bits - 1).float()
    return bit_logits(values, pattern.noise, pattern.owner, len(signs)) * signs
