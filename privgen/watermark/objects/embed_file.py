"""Marks on the objects of an image file."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from privgen.errors import UsageError
from privgen.io.batches import BatchOptions
from privgen.io.files import refuse_existing, write_bytes
from privgen.provenance.seal import Origin
from privgen.watermark.key import Key
from privgen.watermark.objects.carrier import ObjectCarrier, TileCarrier
from privgen.watermark.objects.masks import open_mask
from privgen.watermark.objects.write import MarkedObject, mark_objects, marks_of, object_bindings


@dataclass(frozen=True)
class EmbeddedObjects:
    """What became of one file.

    Attributes:
        source: the file.
        output: the marked image.
        objects: one entry for each object, in order.
        notes: what you should know, such as that only the first frame of an animation was read.
    """

    source: str
    output: str
    objects: tuple[MarkedObject, ...]
    notes: tuple[str, ...] = ()


def embed_objects(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str],
    keys: Mapping[str, Key],
    masks: Mapping[str, str | os.PathLike[str]],
    *,
    rest: Key | None = None,
    psnr: float | None = None,
    batch: BatchOptions | None = None,
    carrier: ObjectCarrier | None = None,
) -> EmbeddedObjects:
    """Mark the objects of an image file, and write it, at its own size, mode and precision, into a folder.

    Args:
        path: the image file.
        output: folder for the result; made if missing. Or the file to write.
        keys: of the objects, by a name of yours.
        masks: image files of the same names, light where the object is.
        rest: a key for all that is outside the objects; None leaves it as it is.
        psnr: quality inside each mask, in dB; see `privgen.watermark.objects.write.mark_objects`.
        batch: how the file is written.
        carrier: what the marks are written with; None is a tile.

    Raises:
        UsageError: no object, objects and masks that do not go together, or a bad mask.
        PrivgenError: a file cannot be read or written.
    """
    batch = batch or BatchOptions()
    targets = batch.outputs([path], output)
    if len(targets) != 1:
        raise UsageError("Masks are of one image; name one image.")
    [(source, target)] = targets.items()
    refuse_existing(target, overwrite=batch.overwrite)
    marks = marks_of(keys, {name: open_mask(Path(mask)) for name, mask in masks.items()})
    loaded = batch.load(source)
    marked = mark_objects(loaded.pixels, marks, psnr=psnr, rest=rest, levels=2**loaded.bits - 1, carrier=carrier)
    kind: Literal["tile", "latent"] = "tile" if carrier is None or isinstance(carrier, TileCarrier) else "latent"
    bindings = object_bindings(marked.objects, kind, None if carrier is None else carrier.payload, rest)
    origin = Origin(bindings, batch.parent_of(source, loaded))
    data, lacking = batch.encode(loaded.with_pixels(marked.pixels), target, origin)
    write_bytes(target, data, overwrite=batch.overwrite)
    return EmbeddedObjects(str(source), str(target), marked.objects, loaded.notes + lacking)
