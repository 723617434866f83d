"""Write marks inside the masks of objects: one key for each object, and nothing outside."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privgen.errors import UsageError
from privgen.watermark.key import Key
from privgen.watermark.objects.masks import at_size, check_mask, with_soft_seams, without_overlaps
from privgen.watermark.objects.place import START, tiles_of
from privgen.watermark.objects.read import FPR, read_back
from privgen.watermark.tile.embed import PSNR as REST_PSNR
from privgen.watermark.tile.embed import tile_residual
from privgen.watermark.tile.pattern import pattern_of
from privgen.watermark.tile.spectrum import check_image


LOUDEST, FAINTEST = 31.0, 37.0
"""Quality inside a mask, in dB, if nothing else is asked for: the first for objects of `FEW_PIXELS` and less, the
second for those of `MANY_PIXELS` and more, and between them by the logarithm of the number of pixels."""
FEW_PIXELS, MANY_PIXELS = 4_500, 13_000

_ROUNDS, _CLOSE_DB, _LARGEST_GAIN = 8, 0.01, 16.0


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
    """

    name: str
    key: str
    key_id: str
    area: float
    object_psnr: float
    p_value: float
    matches: int
    note: str | None = None


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
) -> MarkedObjects:
    """Mark objects of an image, each with its own key.

    Where masks overlap, a pixel belongs to the object with the larger value, and to the last one of equals. Outside
    the masks, and a narrow seam around them, pixels stay as they are, bit for bit.

    Args:
        pixels: (3, H, W) in [0, 1].
        objects: at least one.
        psnr: quality inside each mask, in dB; None is 31 for small objects and 37 for large ones, see `LOUDEST`.
        rest: a key for all that is outside the masks, marked at 42 dB; None leaves it as it is.
        levels: round what is marked to multiples of 1 / levels, as the file will that stores it.
        check: read each mark back, and note which can hardly be read.

    Returns:
        The marked image, and what became of each object.

    Raises:
        UsageError: no object, a bad mask, a quality that is not positive, or an object that others cover.
        ValueError: an image of another shape or type.
    """
    plain = check_image(pixels).float()
    if not objects:
        raise UsageError("Name at least one object.")
    if psnr is not None and not psnr > 0:
        raise UsageError(f"expected a quality above 0 dB, got {psnr}")
    size = (plain.shape[1], plain.shape[2])
    given = [at_size(check_mask(item.mask, item.name).to(plain.device), size) for item in objects]
    owned = without_overlaps(given)
    seams = with_soft_seams(owned)
    tiles, marked, qualities = tiles_of(size), plain, []
    for item, mask, seam in zip(objects, owned, seams, strict=True):
        inside = mask >= 0.5
        if not bool(inside.any()):
            raise UsageError(f"Other masks cover all of {item.name}; give it a mask of its own.")
        residual = tile_residual(plain, pattern_of(item.key), tiles=tiles, place=START) * seam
        quality = psnr if psnr is not None else default_psnr(int(inside.sum()))
        marked, met = _added(marked, residual, seam > 0, inside, quality, levels)
        qualities.append(met)
    if rest is not None:
        outside = 1 - seams.sum(0).clamp(max=1)
        residual = tile_residual(plain, pattern_of(rest)) * outside
        marked, _ = _added(marked, residual, outside > 0, outside > 0, REST_PSNR, levels)
    found = read_back(marked, [item.key for item in objects]) if check else [None] * len(objects)
    entries = []
    for item, mask, met, read in zip(objects, owned, qualities, found, strict=True):
        area = float((mask >= 0.5).float().mean())
        p_value, matches = (math.nan, 0) if read is None else (read.p_value, read.matches)
        weak = read is not None and read.p_value > FPR
        note = f"its mark can hardly be read back, p = {p_value:.2g}: too small or too plain" if weak else None
        entries.append(MarkedObject(item.name, item.key.name, item.key.key_id, area, met, p_value, matches, note))
    return MarkedObjects(marked, tuple(entries))


def default_psnr(pixels: int) -> float:
    """Return the quality, in dB, in which an object of so many pixels is marked if nothing else is asked for."""
    rise = math.log(pixels / FEW_PIXELS) / math.log(MANY_PIXELS / FEW_PIXELS)
    return LOUDEST + (FAINTEST - LOUDEST) * min(max(rise, 0.0), 1.0)


def _added(
    image: Tensor, residual: Tensor, touched: Tensor, inside: Tensor, psnr: float, levels: int | None
) -> tuple[Tensor, float]:
    """Add a residual where it is allowed, so that a quality is met inside the mask; and the quality that was met."""

    def at(gain: float) -> Tensor:
        changed = (image + gain * residual).clamp(0, 1)
        return torch.where(touched, changed if levels is None else (changed * levels).round() / levels, image)

    def quality(changed: Tensor) -> float:
        power = float((changed - image)[:, inside].square().mean())
        return -10 * math.log10(power) if power > 0 else math.inf

    rms = float(residual[:, inside].square().mean().sqrt())
    if rms == 0:
        return image, math.inf
    first = gain = 10 ** (-psnr / 20) / rms
    for _ in range(_ROUNDS):  # make up for what clipping and rounding take away
        excess = quality(at(gain)) - psnr
        if abs(excess) < _CLOSE_DB:
            break
        gain = min(gain * 10 ** (min(excess, 20) / 20), _LARGEST_GAIN * first)
    changed = at(gain)
    return changed, quality(changed)
