"""The kinds of marks that images are read for: tiles, marks of objects, and patterns that an extractor reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privgen.io.pixels import floats
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.objects.read import Located, Locations
from privgen.watermark.protocols import N_BITS, config_value
from privgen.watermark.read.bits import weigh_bits
from privgen.watermark.read.logits import read_logits, to_reader
from privgen.watermark.read.p_values import Test, match_keys, p_value, p_values_of, threshold_matches
from privgen.watermark.read.search import WHOLE, AlignedReader
from privgen.watermark.tile.pattern import pattern_of
from privgen.watermark.tile.payload import read_payload
from privgen.watermark.tile.search import FoundTiles, find_tiles
from privgen.watermark.tile.templates import MANY, Templates


Kind = Literal["tile", "latent"]


@dataclass(frozen=True)
class Reading:
    """What one kind of mark says about one key in one image.

    Attributes:
        kind: of the mark.
        bits: that were read, as text of 0 and 1.
        matches: how many agree with the key's.
        p_value: probability that an image without the mark agrees so well, corrected for the poses that were tried.
        p_uncorrected: the same without the poses of an extractor's search.
        pose: in words, how the image differs from the marked one; None for the image as it is.
        threshold: matches that suffice if all bits are read equally clearly; None for tiles.
        part: where the mark is, if it was looked for in parts of the image.
        payload: the ID that the mark carries; None if there is none, or the mark is not clear.
    """

    kind: Kind
    bits: str
    matches: int
    p_value: float
    p_uncorrected: float
    pose: str | None = None
    threshold: int | None = None
    part: Located | None = field(default=None, repr=False)
    payload: int | None = None

    @property
    def order(self) -> tuple[float, float]:
        """Ascending from the reading that says most."""
        return self.p_value, self.p_uncorrected


class Readings(Sequence[Reading]):
    """What one kind of mark says about each key in one image. Of many keys, a reading is made when you ask for it.

    Attributes:
        p_values: (K,) see `Reading.p_value`.
        p_uncorrected: (K,) see `Reading.p_uncorrected`.

    Args:
        p_values: see `p_values`.
        p_uncorrected: see `p_uncorrected`.
        read: makes the reading of one key.
    """

    def __init__(
        self, p_values: NDArray[np.float64], p_uncorrected: NDArray[np.float64], read: Callable[[int], Reading]
    ) -> None:
        self.p_values, self.p_uncorrected, self._read = p_values, p_uncorrected, read

    def __len__(self) -> int:
        return len(self.p_values)

    @overload
    def __getitem__(self, index: int) -> Reading: ...

    @overload
    def __getitem__(self, index: slice) -> list[Reading]: ...

    def __getitem__(self, index: int | slice) -> Reading | list[Reading]:
        places = range(len(self))[index]
        return self._read(places) if isinstance(places, int) else [self._read(k) for k in places]


class KindReader(Protocol):
    """Reads images for one kind of mark."""

    least: float
    """The smallest p-value that it can give."""

    def __call__(self, images: Sequence[Tensor], rate: float, search: Sequence[bool]) -> list[Readings]:
        """Read images.

        Args:
            images: each (3, H, W), floats in [0, 1] or samples of a file, of any size.
            rate: a key with a p-value up to this is found, and not searched for any further.
            search: for each image whether to look for the mark in other poses.

        Returns:
            For each image the readings of all keys.
        """
        ...


class TileReader:
    """Reads tiles.

    Args:
        keys: to look for.
    """

    least = 0.0

    def __init__(self, keys: Sequence[Key]) -> None:
        self.keys = tuple(keys)
        # The patterns of many keys are made again of those keys that an image tells of.
        self.patterns = [pattern_of(key) for key in keys] if len(keys) <= MANY else []
        self.templates = Templates(self.patterns or map(pattern_of, keys), len(keys))

    def __call__(self, images: Sequence[Tensor], rate: float, search: Sequence[bool]) -> list[Readings]:
        """Read images; see `KindReader`."""
        fpr = min(rate * len(self.keys), 0.5)
        readings = []
        for pixels, wanted in zip(images, search, strict=True):
            found = find_tiles(pixels, self.templates, search=wanted, fpr=fpr)
            readings.append(Readings(found.p_values, found.p_values, partial(self._reading, found, fpr)))
        return readings

    def _reading(self, found: FoundTiles, fpr: float, k: int) -> Reading:
        pattern = self.patterns[k] if self.patterns else pattern_of(self.keys[k])
        match = found.match(k, pattern)
        pose = None if str(match.pose) == "as it was marked" else str(match.pose)
        payload = read_payload(self.keys[k], pattern, match.evidence) if match.p_value <= fpr else None
        figures = (match.bits, match.matches, match.p_value, match.p_value, pose)
        return Reading("tile", *figures, payload=payload)


class ObjectReader:
    """Reads marks of objects, in parts of images.

    Args:
        kind: of the marks.
        locator: looks for the keys in an image, and with `search` in other poses, too.
    """

    least = 0.0

    def __init__(self, kind: Kind, locator: Callable[..., Locations]) -> None:
        self.kind, self.locator = kind, locator

    def __call__(self, images: Sequence[Tensor], rate: float, search: Sequence[bool]) -> list[Readings]:
        """Read images; see `KindReader`."""
        found = [self.locator(floats(pixels), search=wanted) for pixels, wanted in zip(images, search, strict=True)]
        return [Readings(places.p_raw, places.p_raw, partial(self._reading, places)) for places in found]

    def _reading(self, places: Locations, k: int) -> Reading:
        found = places[k]
        part = found if found.detected else None
        figures = (found.bits, found.matches, found.p_raw, found.p_raw, found.pose)
        return Reading(self.kind, *figures, part=part, payload=found.payload)


class ExtractorReader:
    """Reads patterns with a model's extractor, and in other poses with its aligner.

    Args:
        networks: of the model that reads; its aligner is needed for a search only.
        keys: to look for.
        test: of the bits.
        search: whether there will be searches.

    Raises:
        PrivgenError: a network cannot be found or read.
    """

    def __init__(self, networks: Networks, keys: Sequence[Key], test: Test, *, search: bool) -> None:
        self.test = test
        self.extractor = networks.extractor
        self.aligned = AlignedReader(self.extractor, networks.aligner) if search else None
        self.n_bits = int(config_value(self.extractor, "n_bits", N_BITS))
        self.least = float(p_value(self.n_bits, self.n_bits))
        self.messages = torch.tensor([key.bits(self.n_bits) for key in keys])
        self._numbers = self.messages.double().numpy()

    def __call__(self, images: Sequence[Tensor], rate: float, search: Sequence[bool]) -> list[Readings]:
        """Read images; see `KindReader`."""
        if self.aligned is None:
            return self._as_they_are(images, 1, rate)
        # An image that is not searched is corrected like one whose search ended with the first look.
        readings = self._as_they_are(images, WHOLE, rate)
        if wanted := [i for i, searched in enumerate(search) if searched]:
            for i, row in zip(wanted, self._searched(self.aligned, [images[i] for i in wanted], rate), strict=True):
                readings[i] = row
        return readings

    def _as_they_are(self, images: Sequence[Tensor], looks: int, rate: float) -> list[Readings]:
        logits = read_logits(images, self.extractor, batch_size=len(images))
        weighed = weigh_bits(logits)
        p_values = p_values_of(weighed, self._numbers, self.test)

        def read(image: int, k: int) -> Reading:
            bits = torch.from_numpy(weighed[image] > 0).long()
            return _reading(bits, self.messages[k], float(p_values[image, k]), looks, rate)

        return [Readings(np.minimum(1, looks * row), row, partial(read, i)) for i, row in enumerate(p_values)]

    def _searched(self, aligned: AlignedReader, images: Sequence[Tensor], rate: float) -> list[Readings]:
        small = torch.stack([to_reader(image, self.extractor) for image in images])
        aspects = torch.tensor([image.shape[-1] / image.shape[-2] for image in images])
        fpr = rate * len(self.messages)
        found = aligned(small, self.messages, fpr=fpr, aspect=aspects, test=self.test)
        readings = []
        for i in range(len(images)):
            row = []
            for k, message in enumerate(self.messages):
                [[test]] = match_keys(found.logits[i, k], message, test=self.test)
                pose = describe_pose(found.poses[i, k].tolist())
                bits = torch.tensor(test.bits)
                row.append(_reading(bits, message, test.p_value, int(found.places[i, k]), rate, pose))
            p_values, p_uncorrected = (np.array(p) for p in zip(*(reading.order for reading in row), strict=True))
            readings.append(Readings(p_values, p_uncorrected, row.__getitem__))
        return readings


def _reading(bits: Tensor, message: Tensor, p_value: float, looks: int, rate: float, pose: str = "") -> Reading:
    matches, text = int((bits == message).sum()), "".join(map(str, bits.tolist()))
    threshold = threshold_matches(len(bits), rate / looks)
    return Reading("latent", text, matches, min(1.0, looks * p_value), p_value, pose or None, threshold)


def describe_pose(pose: Sequence[float]) -> str:
    """A pose, as in `Poses`, in words; empty for the whole canvas as it is."""
    side, left, top, degrees = pose
    parts = []
    if abs(side - 1) > 0.005 or abs(left) > 0.005 or abs(top) > 0.005:
        parts.append(
            f"{side:.0%} x {side:.0%} of the marked image, from {left:.0%} of its width and {top:.0%} of its height"
        )
    if abs(degrees) > 0.5:
        parts.append(f"turned by {degrees:.0f} degrees")
    return ", ".join(parts)
