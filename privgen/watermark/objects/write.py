"""Write marks inside the masks of objects: one key for each object, and nothing outside."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from privgen.errors import UsageError
from privgen.io.pixels import floats
from privgen.io.residual import gain_for
from privgen.metrics.visibility import TOLERANCE_REACH
from privgen.provenance.claim import SoftBinding
from privgen.watermark.key import Key
from privgen.watermark.objects.carrier import ObjectCarrier, Place, TileCarrier
from privgen.watermark.objects.masks import fitted, with_soft_seams, without_overlaps
from privgen.watermark.objects.read import Located
from privgen.watermark.tile.embed import PSNR as REST_PSNR
from privgen.watermark.tile.embed import tile_residual
from privgen.watermark.tile.payload import pattern_with
from privgen.watermark.tile.spectrum import check_image


@dataclass(frozen=True, eq=False)
class ObjectMark:
    """An object, and the key that is to own it.

    Attributes:
        name: the noun, or your name of the object.
        key: whose mark.
        mask: (H, W) in [0, 1], 1 where the object is, of any size; it is resized to the image's.
    """

    name: str
    key: Key
    mask: Tensor


def marks_of(keys: Mapping[str, Key], masks: Mapping[str, Tensor]) -> list[ObjectMark]:
    """Join keys and masks of objects by the objects' names.

    Raises:
        UsageError: no object, an object without a mask, or a mask without an object.
    """
    for name in keys:
        if name not in masks:
            raise UsageError(f"There is no mask for {name}; give one.")
    for name in masks:
        if name not in keys:
            raise UsageError(f"There is a mask for {name}, but no key; say whose it is.")
    return [ObjectMark(name, key, masks[name]) for name, key in keys.items()]


@dataclass(frozen=True)
class MarkedObject:
    """What became of one object.

    Attributes:
        name: of the object.
        key: name of the key that owns it.
        key_id: the key's public id.
        area: fraction of the image that its mask covers, without what others cover.
        object_psnr: quality inside the mask, in dB.
        p_value: of its mark, read back from the marked image without the mask.
        matches: bits of the key that are read back.
        note: what you should know if the mark can hardly be read back; None otherwise.
        box: left, top, right and bottom edge of the mask, as fractions of the image's width and height; None if the
            object was not found.
    """

    name: str
    key: str
    key_id: str
    area: float
    object_psnr: float
    p_value: float
    matches: int
    note: str | None = None
    box: tuple[float, float, float, float] | None = None


def object_bindings(
    objects: Sequence[MarkedObject], kind: Literal["tile", "latent"], payload: int | None, rest: Key | None
) -> list[SoftBinding]:
    """How credentials name the marks of an image's objects, each with its rectangle, and of all that is outside.

    Args:
        objects: what became of them.
        kind: of their marks.
        payload: that all of the marks carry.
        rest: key for all that is outside the objects.
    """
    found = [SoftBinding(item.key_id, payload, kind, item.name, item.box) for item in objects if item.box is not None]
    return found + ([] if rest is None else [SoftBinding(rest.key_id, payload)])


@dataclass(frozen=True, eq=False)
class MarkedObjects:
    """An image with marked objects.

    Attributes:
        pixels: (3, H, W) float32 in [0, 1].
        objects: one entry for each object, in their order.
    """

    pixels: Tensor
    objects: tuple[MarkedObject, ...]


@torch.no_grad()
def mark_objects(
    pixels: Tensor,
    objects: Sequence[ObjectMark],
    *,
    psnr: float | None = None,
    rest: Key | None = None,
    levels: int | None = None,
    check: bool = True,
    carrier: ObjectCarrier | None = None,
) -> MarkedObjects:
    """Mark objects of an image, each with its own key.

    Where masks overlap, a pixel belongs to the object with the larger value, and to the last one of equals. Outside
    the masks, and a narrow seam around them, pixels stay as they are, bit for bit.

    Each mark is read back while it is written, and bits that the object itself disturbs are written louder than
    others, at the same quality.

    Args:
        pixels: (3, H, W) in [0, 1].
        objects: at least one.
        psnr: quality inside each mask, in dB; None is what suits the carrier and the object's size.
        rest: a key for all that is outside the masks, marked at 42 dB; None leaves it as it is.
        levels: round what is marked to multiples of 1 / levels, as the file will that stores it.
        check: locate each mark afterwards, and note which can hardly be read.
        carrier: what the marks are written with; None is a tile.

    Returns:
        The marked image, and what became of each object.

    Raises:
        UsageError: no object, a bad mask, a quality that is not positive, or an object that others cover.
        ValueError: an image of another shape or type.
    """
    plain = floats(check_image(pixels))
    if not objects:
        raise UsageError("Name at least one object.")
    if psnr is not None and not psnr > 0:
        raise UsageError(f"expected a quality above 0 dB, got {psnr}")
    size = (plain.shape[1], plain.shape[2])
    owned = without_overlaps([fitted(item.mask.to(plain.device), size, item.name) for item in objects])
    seams = with_soft_seams(owned)
    carrier = carrier or TileCarrier()
    columns = zip(objects, owned, seams, strict=True)
    parts = [_Part(plain, item, (mask, seam), psnr, carrier) for item, mask, seam in columns]
    for last in (False,) * (carrier.rounds - 1) + (True,):
        marked = plain.clone()
        for part in parts:
            part.write(marked, levels)
        if last:
            break
        seen = carrier.look(marked)
        clear = [part.writer.balance(seen, part.gain) for part in parts]
        if all(clear):
            break
    if rest is not None:
        outside = 1 - seams.sum(0).clamp(max=1)
        residual = tile_residual(plain, pattern_with(rest, carrier.payload)) * outside
        marked, _, _ = add_inside(marked, residual, (outside > 0, outside > 0), REST_PSNR, levels)
    found = carrier.locate(marked, [item.key for item in objects]) if check else [None] * len(objects)
    return MarkedObjects(marked, tuple(part.result(read) for part, read in zip(parts, found, strict=True)))


class _Part:
    """The part of an image that an object covers, and the mark that is being written there."""

    def __init__(
        self, plain: Tensor, item: ObjectMark, masks: tuple[Tensor, Tensor], psnr: float | None, carrier: ObjectCarrier
    ) -> None:
        self.item, (self.mask, seam) = item, masks
        covered = int((self.mask >= 0.5).sum())
        if not covered:
            raise UsageError(f"Other masks cover all of {item.name}; give it a mask of its own.")
        self.psnr = carrier.quality(covered) if psnr is None else psnr
        self.met, self.gain, self.payload = math.inf, 0.0, carrier.payload
        rows, columns = (seam > 0).any(1).nonzero()[:, 0], (seam > 0).any(0).nonzero()[:, 0]
        top, left = (max(0, int(edge[0]) - TOLERANCE_REACH) for edge in (rows, columns))
        bottom, right = int(rows[-1]) + 1 + TOLERANCE_REACH, int(columns[-1]) + 1 + TOLERANCE_REACH
        self.crop = (slice(top, bottom), slice(left, right))
        self.seam = seam[self.crop]
        self.writer = carrier.writer(plain, Place(self.mask, self.crop, self.psnr), item.key)

    def write(self, marked: Tensor, levels: int | None) -> None:
        """Write the mark into an image (3, H, W)."""
        where = (self.seam > 0, self.mask[self.crop] >= 0.5)
        residual = self.writer.residual() * self.seam
        marked[:, *self.crop], self.met, self.gain = add_inside(
            marked[:, *self.crop], residual, where, self.psnr, levels
        )

    def result(self, read: Located | None) -> MarkedObject:
        """What became of the object, if this was read afterwards."""
        key, area = self.item.key, float((self.mask >= 0.5).float().mean())
        p_value, matches = (math.nan, 0) if read is None else (read.p_value, read.matches)
        note = None
        if read is not None and not read.detected:
            note = f"the mark of {key.name} can hardly be read back, p = {p_value:.2g}: too small or too plain"
        elif read is not None and self.payload is not None and read.payload != self.payload:
            note = f"the payload of {key.name} cannot be read back: the object is too small or too plain"
        owner = (self.item.name, key.name, key.key_id)
        return MarkedObject(*owner, area, self.met, p_value, matches, note, self._box())

    def _box(self) -> tuple[float, float, float, float] | None:
        inside = self.mask >= 0.5
        if not inside.any():
            return None
        rows, columns = inside.any(1).nonzero()[:, 0], inside.any(0).nonzero()[:, 0]
        height, width = inside.shape
        edges = (columns[0] / width, rows[0] / height, (columns[-1] + 1) / width, (rows[-1] + 1) / height)
        left, top, right, bottom = map(float, edges)
        return left, top, right, bottom


def add_inside(
    image: Tensor, residual: Tensor, where: tuple[Tensor, Tensor], psnr: float, levels: int | None
) -> tuple[Tensor, float, float]:
    """Add a residual, scaled so that a quality is met inside a mask.

    Args:
        image: (3, H, W) in [0, 1].
        residual: the same shape.
        where: (H, W) bool, which pixels may change; and (H, W) bool, where the quality is measured.
        psnr: in dB; where clipping leaves no room, the change stays weaker.
        levels: round what may change to multiples of 1 / levels.

    Returns:
        The image, the quality that was met, and the factor by which the residual was multiplied.
    """
    touched, inside = where

    def at(gain: float) -> Tensor:
        changed = (image + gain * residual).clamp(0, 1)
        return torch.where(touched, changed if levels is None else (changed * levels).round() / levels, image)

    def quality(changed: Tensor) -> float:
        power = float((changed - image)[:, inside].square().mean())
        return -10 * math.log10(power) if power > 0 else math.inf

    rms = float(residual[:, inside].square().mean().sqrt())
    if rms == 0:
        return image, math.inf, 0.0
    gain = gain_for(psnr, 10 ** (-psnr / 20) / rms, lambda gain: quality(at(gain)))
    changed = at(gain)
    return changed, quality(changed), gain
