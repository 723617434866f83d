"""The kinds of marks that images are read for: tiles, marks of objects, and patterns that an extractor reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch
from torch import Tensor

from privgen.io.pixels import floats
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.objects.read import Located
from privgen.watermark.protocols import N_BITS, config_value
from privgen.watermark.read.logits import read_logits, to_reader
from privgen.watermark.read.p_values import KeyTest, Test, match_keys, p_value, threshold_matches
from privgen.watermark.read.search import WHOLE, AlignedReader
from privgen.watermark.tile.pattern import pattern_of
from privgen.watermark.tile.payload import read_payload
from privgen.watermark.tile.search import detect_tiles


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


class KindReader(Protocol):
    """Reads images for one kind of mark."""

    least: float
    """The smallest p-value that it can give."""

    def __call__(self, images: Sequence[Tensor], rate: float, search: Sequence[bool]) -> list[list[Reading]]:
        """Read images.

        Args:
            images: each (3, H, W), floats in [0, 1] or samples of a file, of any size.
            rate: a key with a p-value up to this is found, and not searched for any further.
            search: for each image whether to look for the mark in other poses.

        Returns:
            For each image one reading for each key.
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
        self.patterns = [pattern_of(key) for key in keys]

    def __call__(self, images: Sequence[Tensor], rate: float, search: Sequence[bool]) -> list[list[Reading]]:
        """Read images; see `KindReader`."""
        fpr = min(rate * len(self.patterns), 0.5)
        readings = []
        for pixels, wanted in zip(images, search, strict=True):
            [found] = detect_tiles([pixels], self.patterns, search=wanted, fpr=fpr)
            row = []
            for key, pattern, match in zip(self.keys, self.patterns, found, strict=True):
                pose = None if str(match.pose) == "as it was marked" else str(match.pose)
                payload = read_payload(key, pattern, match.evidence) if match.p_value <= fpr else None
                figures = (match.bits, match.matches, match.p_value, match.p_value, pose)
                row.append(Reading("tile", *figures, payload=payload))
            readings.append(row)
        return readings


class ObjectReader:
    """Reads marks of objects, in parts of images.

    Args:
        kind: of the marks.
        locator: looks for the keys in an image, and with `search` in other poses, too.
    """

    least = 0.0

    def __init__(self, kind: Kind, locator: Callable[..., Sequence[Located]]) -> None:
        self.kind, self.locator = kind, locator

    def __call__(self, images: Sequence[Tensor], rate: float, search: Sequence[bool]) -> list[list[Reading]]:
        """Read images; see `KindReader`."""
        readings = []
        for pixels, wanted in zip(images, search, strict=True):
            row = []
            for found in self.locator(floats(pixels), search=wanted):
                part = found if found.detected else None
                figures = (found.bits, found.matches, found.p_raw, found.p_raw, found.pose)
                row.append(Reading(self.kind, *figures, part=part, payload=found.payload))
            readings.append(row)
        return readings


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

    def __call__(self, images: Sequence[Tensor], rate: float, search: Sequence[bool]) -> list[list[Reading]]:
        """Read images; see `KindReader`."""
        if self.aligned is None:
            return self._as_they_are(images, 1, rate)
        # An image that is not searched is corrected like one whose search ended with the first look.
        readings = self._as_they_are(images, WHOLE, rate)
        if wanted := [i for i, searched in enumerate(search) if searched]:
            for i, row in zip(wanted, self._searched(self.aligned, [images[i] for i in wanted], rate), strict=True):
                readings[i] = row
        return readings

    def _as_they_are(self, images: Sequence[Tensor], looks: int, rate: float) -> list[list[Reading]]:
        logits = read_logits(images, self.extractor, batch_size=len(images))
        rows = match_keys(logits, self.messages, test=self.test)
        return [[_reading(test, looks, rate) for test in row] for row in rows]

    def _searched(self, aligned: AlignedReader, images: Sequence[Tensor], rate: float) -> list[list[Reading]]:
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
                row.append(_reading(test, int(found.places[i, k]), rate, pose))
            readings.append(row)
        return readings


def _reading(test: KeyTest, looks: int, rate: float, pose: str = "") -> Reading:
    p, bits = min(1.0, looks * test.p_value), "".join(map(str, test.bits))
    threshold = threshold_matches(test.n_bits, rate / looks)
    return Reading("latent", bits, test.matches, p, test.p_value, pose or None, threshold)


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
