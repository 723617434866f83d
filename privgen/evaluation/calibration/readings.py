"""Readings of unmarked images for random keys, by the same readers that detection uses."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from privgen.io.journal import Journal
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.objects.read import Locator
from privgen.watermark.read.kinds import ExtractorReader, KindReader, ObjectReader, TileReader


ReadingKind = Literal["tile", "extractor", "objects", "tile_search", "extractor_search", "objects_search"]
KINDS: tuple[ReadingKind, ...] = get_args(ReadingKind)
"""Kinds of readings. Tiles, and what an extractor reads (the carriers "latent" and "token"), of whole images; objects,
which are located; and the searches for each in other poses."""
NOMINAL = tuple(10 ** (-k / 4) for k in range(25))
"""Rates at which readings are counted, from 1 down to 1e-6."""
FEW_KEYS = 5
"""Keys of an image that objects are searched for at most; that takes a second and more for each."""
LOG = "readings.jsonl"
"""Name of the file in the output folder that keeps what was read, so that an interrupted run goes on."""

_NEVER = 1e-12  # a key is searched for until its p-value is at most this: to the end


@dataclass(frozen=True)
class ImageReadings:
    """What one kind of reading says of one image and random keys.

    Attributes:
        kind: of the reading.
        source: of the image.
        name: of the image.
        distortion: that it went through.
        readings: how many keys it was read for.
        counts: how many of them have a p-value of at most each rate of `NOMINAL`.
        smallest: p-value.
        bits: that were read, as texts of 0 and 1: of each key for tiles, once for the extractor, else none.
    """

    kind: str
    source: str
    name: str
    distortion: str
    readings: int
    counts: tuple[int, ...]
    smallest: float
    bits: tuple[str, ...] = ()

    @property
    def place(self) -> tuple[str, str, str, str]:
        """What it is a reading of."""
        return self.kind, self.source, self.name, self.distortion


class ReadingsLog:
    """Readings in a journal that later runs of the same work take up.

    Args:
        path: the file; need not exist. None keeps no log.
        work: fingerprint of all that the readings depend on besides image and distortion.

    Raises:
        PrivgenError: the file cannot be read.
    """

    def __init__(self, path: Path | None, work: str) -> None:
        self._work, self._journal = work, Journal(path)
        self._found = {readings.place: readings for readings in self._journal.read(_parsed, work)}

    def get(self, kind: str, source: str, name: str, distortion: str) -> ImageReadings | None:
        """Return what was read, or None."""
        return self._found.get((kind, source, name, distortion))

    def add(self, readings: ImageReadings) -> None:
        """Write down what was read.

        Raises:
            PrivgenError: the file cannot be written.
        """
        self._found[readings.place] = readings
        self._journal.append([{"work": self._work, **asdict(readings)}])


def _parsed(record: dict[str, Any]) -> ImageReadings:
    fields = {name: value for name, value in record.items() if name != "work"}
    return ImageReadings(**{**fields, "counts": tuple(fields["counts"]), "bits": tuple(fields["bits"])})


def read_for(
    keys: Sequence[Key], kind: ReadingKind, pixels: Tensor, networks: Networks
) -> tuple[list[float], tuple[str, ...]]:
    """Read an image for keys.

    Args:
        keys: random ones.
        kind: of the reading.
        pixels: (3, H, W) in [0, 1].
        networks: of the model; they read for the kinds "extractor" and "extractor_search".

    Returns:
        The p-value of each key, and the bits of `ImageReadings`.

    Raises:
        PrivgenError: a network cannot be found or read.
    """
    [row] = _reader(kind, networks, keys)([pixels], _NEVER, [is_search(kind)])
    bits = tuple(reading.bits for reading in row)
    return row.p_values.tolist(), {"tile": bits, "extractor": bits[:1]}.get(kind, ())


def is_search(kind: ReadingKind) -> bool:
    """Whether a kind of reading looks for marks in other poses."""
    return kind.endswith("_search")


def _reader(kind: ReadingKind, networks: Networks, keys: Sequence[Key]) -> KindReader:
    if kind in ("tile", "tile_search"):
        return TileReader(keys)
    if kind == "objects":
        return ObjectReader("tile", Locator(keys, _NEVER))
    if kind == "objects_search":
        return ObjectReader("tile", Locator(keys[:FEW_KEYS], _NEVER))
    reader = ExtractorReader(networks, keys, "weighted", search=kind == "extractor_search")
    if reader.aligned is not None:  # every key is searched for as if it were the only one
        reader.aligned = replace(reader.aligned, climbed=len(keys))
    return reader


def readable_kinds(networks: Networks) -> list[ReadingKind]:
    """The kinds of readings that a model's networks can make."""
    able = {"extractor": networks.can_read, "extractor_search": networks.can_read and networks.can_search}
    return [kind for kind in KINDS if able.get(kind, True)]


def counted(p_values: Sequence[float]) -> tuple[int, ...]:
    """How many p-values are at most each rate of `NOMINAL`."""
    return tuple((np.asarray(p_values)[:, None] <= NOMINAL).sum(0).tolist())
