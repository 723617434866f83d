"""Whose mark images carry: from pixels and keys to a decision with a p-value."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privgen.errors import UsageError
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.objects.code import CodeReader
from privgen.watermark.objects.code_read import CodeLocator
from privgen.watermark.objects.read import Locator
from privgen.watermark.read.kinds import ExtractorReader, Kind, KindReader, ObjectReader, Reading, Readings, TileReader
from privgen.watermark.read.p_values import TESTS, Test, adjust
from privgen.watermark.regions import WHOLE_IMAGE, Region
from privgen.watermark.write.mark_spec import CARRIERS, Carrier


FPR = 1e-6
"""Probability that an unmarked image may be called marked, if nothing else is asked for."""


@dataclass(frozen=True)
class DetectSpec:
    """How marks are detected.

    Attributes:
        fpr: probability, in (0, 1), that an unmarked image is called marked, whatever the number of keys.
        search: also look for marks in what was cut out of a marked image, framed, scaled or turned. A tile is found
            in any part and at any angle within a second or two. Only if there is none, the pattern of the other
            carriers is looked for, which takes some seconds: in at least half of the marked image's area, of its own
            shape, turned by up to 45 degrees. False positives stay as rare.
        test: for the carriers "token" and "latent": "weighted" goes by how clearly each bit is read, "binomial" counts
            the bits that agree; see `privgen.watermark.read.p_values`.
        carrier: the marks that are looked for; None is all that the model can read. Marks of the carriers "token" and
            "latent" are read alike. Each of the two kinds gets half of the rate.
        locate: also look for marked objects, and say which part of the image belongs to which key. Those with tiles,
            and those that "latent" or "token" has written, are one more kind each, and all kinds get equal parts of
            the rate. Without a carrier, objects with tiles are looked for.

    Raises:
        UsageError: a value out of its range.
    """

    fpr: float = FPR
    search: bool = False
    test: Test = "weighted"
    carrier: Carrier | None = None
    locate: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.fpr < 1:
            raise UsageError(f"expected a false-positive rate in (0, 1), got {self.fpr}")
        if self.test not in TESTS:
            raise UsageError(f"expected the test {' or '.join(TESTS)}, got {self.test!r}")
        if self.carrier not in (None, *CARRIERS):
            raise UsageError(f"expected one of the carriers {', '.join(CARRIERS)}, got {self.carrier!r}")


@dataclass(frozen=True)
class KeyMatch:
    """What one image says about one key.

    Attributes:
        key: name of the key.
        key_id: its public id.
        carrier: the kind of mark that tells most of the key: "tile", or "latent" for what the extractor reads, which
            the carrier "token" writes, too.
        matches: bits that agree with the key's.
        p_value: probability that an image without the mark agrees as well or better, read like this. Of a tile it is
            corrected for the poses that were tried.
        p_adjusted: the same, corrected for the number of keys (Holm), of kinds of marks, and of poses that were tried.
        detected: whether p_adjusted <= fpr.
        payload: the ID that a tile of the key carries; None if it carries none that can be read.
    """

    key: str
    key_id: str
    carrier: Kind
    matches: int
    p_value: float
    p_adjusted: float
    detected: bool
    payload: int | None = None


@dataclass(frozen=True)
class Detection:
    """Whose mark one image carries. Printed, it is one clear line.

    Example:
        >>> from privgen import Key, Watermark
        >>> mark, key = Watermark.from_pretrained("mini"), Key.new("alice")
        >>> found = mark.detect(mark.embed("photo.jpg", key), key)
        >>> found.key, found.p_value < 1e-6
        ('alice', True)

    Attributes:
        detected: whether the image carries the mark of one of the keys.
        key: name of the key whose mark it carries, the clearest if there are several; None if there is none.
        key_id: its public id.
        p_value: of the best match, corrected for the number of keys and of poses that were tried: the probability that
            an image without any of the marks matches so well.
        regions: the parts of the image that keys own, with boxes and masks if they were looked for; the whole image
            for each other key that is detected.
        best: the key that matches best, whether it is detected or not.
        keys: one entry for each key, in the order given; of a registry's keys, only those that are detected, and the
            best.
        n_bits: number of bits that were read.
        bits: the bits of the best match, as text of 0 and 1.
        threshold: matches of the extractor's bits that suffice if all are read equally clearly; None if only tiles
            were looked for, which are not told by the number of their bits.
        spec: how it was detected.
        pose: in words, which part of the marked image this is and how it is turned; None for the image as it is.
        payload: the ID that the tile of the best key carries; None if it carries none that can be read. A wrong ID is
            read with a probability of at most `privgen.watermark.tile.payload_code.FALSE_ACCEPT`.
        n_keys: number of keys that were looked for.
    """

    detected: bool
    key: str | None
    key_id: str | None
    p_value: float
    regions: tuple[Region, ...]
    best: KeyMatch
    keys: tuple[KeyMatch, ...]
    n_bits: int
    bits: str
    threshold: int | None
    spec: DetectSpec
    pose: str | None = None
    payload: int | None = None
    n_keys: int = 1

    def __str__(self) -> str:
        if self.spec.locate and self.detected:
            return "; ".join(map(self._owner, self.regions))
        several = self.n_keys > 1
        corrected = f" for {self.n_keys} keys" if several else ""
        # The bits of a tile are read where its key correlates best, so half of them and more agree by chance.
        bits = (
            "" if self.best.carrier == "tile" and not self.detected else f"{self.best.matches} of {self.n_bits} bits, "
        )
        figures = f"{bits}p = {self.p_value:.2g}{corrected}"
        if self.detected:
            others = [match.key for match in self.keys if match.detected and match.key != self.key]
            pose = f"; {self.pose}" if self.pose else ""
            figures += _payload_in_words(self.payload)
            return (
                f"carries the mark of {self.key} ({figures}{pose}){'; also of ' if others else ''}{', '.join(others)}"
            )
        which = (
            f"any of the marks of {self.n_keys} keys; best is {self.best.key}"
            if several
            else (f"the mark of {self.best.key}")
        )
        return f"does not carry {which} ({figures})"

    def _owner(self, region: Region) -> str:
        """Who owns a region, in words."""
        pose = f"; {region.pose}" if region.pose else ""
        figures = f"{region.matches} bits, p = {region.p_value:.2g}{_payload_in_words(region.payload)}"
        return f"{region.key} owns {region.place()} ({figures}{pose})"


def _payload_in_words(payload: int | None) -> str:
    return "" if payload is None else f", payload {payload}"


class Detector:
    """Looks for keys in images.

    Args:
        networks: of the model that reads; its aligner is needed for a search only. A model without an extractor reads
            tiles only, and one without an aligner searches for tiles only, unless the spec names another carrier.
        keys: at least one; a key that is given twice counts once.
        spec: how marks are detected.
        every: list all keys in a detection; otherwise only those that are detected, and the best. With thousands of
            keys, that saves most of the time.

    Raises:
        UsageError: no key, or a rate that so few bits cannot show.
        PrivgenError: a network cannot be found or read.
    """

    def __init__(
        self, networks: Networks, keys: Sequence[Key], spec: DetectSpec | None = None, *, every: bool = True
    ) -> None:
        self.keys = tuple({key.key_id: key for key in keys}.values())
        self.spec, self.every = spec or DetectSpec(), every
        if not self.keys:
            raise UsageError("Name at least one key.")
        tiles = self.spec.carrier in (None, "tile", "tile+latent")
        extracts = networks.can_read if self.spec.carrier is None else self.spec.carrier != "tile"
        readers: list[KindReader] = []
        coded = self.spec.locate and self.spec.carrier in ("latent", "token")
        coded |= self.spec.locate and self.spec.carrier == "tile+latent" and networks.can_mark_objects
        kinds = tiles + extracts + (tiles + coded if self.spec.locate else 0)
        if self.spec.locate and tiles:
            readers.append(ObjectReader("tile", Locator(self.keys, self.spec.fpr / kinds)))
        if coded:
            reader = CodeReader(networks.pipeline, networks.object_code)
            readers.append(ObjectReader("latent", CodeLocator(reader, self.keys, self.spec.fpr / kinds)))
        if tiles:
            readers.append(TileReader(self.keys))
        if extracts:
            search = self.spec.search and (self.spec.carrier is not None or networks.can_search)
            readers.append(ExtractorReader(networks, self.keys, self.spec.test, search=search))
        self.readers = tuple(readers)
        least = min(reader.least for reader in readers) * len(readers) * len(self.keys)
        if least > self.spec.fpr:
            raise UsageError(
                f"The bits of {len(self.keys)} keys cannot show a rate below {least:.2g}; allow a larger one, or look "
                "for tiles."
            )

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor]) -> list[Detection]:
        """Look for the keys in images.

        Args:
            images: each (3, H, W), floats in [0, 1] or samples of a file, of any size.

        Returns:
            One detection for each image.
        """
        rate = self.spec.fpr / (len(self.readers) * len(self.keys))
        readings: list[list[Readings]] = []
        missing = [True] * len(images)
        for reader in self.readers:
            read = reader(images, rate, [self.spec.search and wanted for wanted in missing])
            readings.append(read)
            missing = [wanted and not (row.p_values <= rate).any() for wanted, row in zip(missing, read, strict=True)]
        return [self._detection([rows[i] for rows in readings]) for i in range(len(images))]

    def _detection(self, readings: Sequence[Readings]) -> Detection:
        """What one image says, by kinds of marks."""
        # Of each key, the kind that tells most: that of the smallest p-value, and the first of equals.
        kinds = np.zeros(len(self.keys), np.int64)
        p_values, uncorrected = readings[0].p_values, readings[0].p_uncorrected
        for number, kind in enumerate(readings[1:], start=1):
            p, u = kind.p_values, kind.p_uncorrected
            more = (p < p_values) | ((p == p_values) & (u < uncorrected))
            kinds[more] = number
            p_values, uncorrected = np.where(more, p, p_values), np.where(more, u, uncorrected)
        least = np.flatnonzero(p_values == p_values.min())
        index = int(least[uncorrected[least].argmin()])
        corrected = np.minimum(1, len(readings) * p_values)
        # Only these can be detected, and Holm's correction of the smallest p-values does not depend on the others.
        few = np.union1d(np.flatnonzero(corrected <= self.spec.fpr), index)
        listed = np.arange(len(self.keys)) if self.every else few
        adjusted = dict(
            zip(listed.tolist(), adjust(corrected[listed], "holm", candidates=len(self.keys)), strict=True)
        )
        shown: list[int] = [k for k in listed.tolist() if self.every or k == index or adjusted[k] <= self.spec.fpr]
        matches, regions, best, reading = [], list[Region](), None, None
        for k in shown:
            key, read, p_adjusted = self.keys[k], [kind[k] for kind in readings], float(adjusted[k])
            chosen, detected = read[int(kinds[k])], p_adjusted <= self.spec.fpr
            payloads = [kind.payload for kind in (chosen, *read) if kind.payload is not None and detected]
            payload = payloads[0] if payloads else None
            figures = (chosen.matches, chosen.p_uncorrected, p_adjusted, detected, payload)
            match = KeyMatch(key.name, key.key_id, chosen.kind, *figures)
            matches.append(match)
            if detected:
                regions += _regions(match, read, self.spec.fpr / len(self.keys))
            if k == index:
                best, reading = match, chosen
                threshold = next((kind.threshold for kind in read if kind.threshold is not None), None)
        assert best is not None
        assert reading is not None
        return Detection(
            detected=best.detected,
            key=best.key if best.detected else None,
            key_id=best.key_id if best.detected else None,
            p_value=best.p_adjusted,
            regions=tuple(regions),
            best=best,
            keys=tuple(matches),
            n_bits=len(reading.bits),
            bits=reading.bits,
            threshold=threshold,
            spec=self.spec,
            pose=reading.pose if best.detected else None,
            payload=best.payload,
            n_keys=len(self.keys),
        )


def _regions(match: KeyMatch, readings: Sequence[Reading], rate: float) -> list[Region]:
    """The regions of a key that is detected: what was located, and the whole image if it carries the mark, too.

    Args:
        match: of the key.
        readings: of the key, one for each kind.
        rate: p-value, corrected for kinds, up to which a reading tells of the whole image.
    """
    kinds, regions, whole = len(readings), [], []
    for reading in readings:
        part = reading.part
        if part is None:
            whole.append(reading)
            continue
        p = min(1.0, kinds * part.p_value)
        figures = (part.matches, part.pose, part.payload)
        regions.append(Region(match.key, match.key_id, part.box, p, part.mask, part.heat, *figures))
    if regions:  # a search for whole images finds the tiles of objects, too, in a pose that is not the object's
        whole = [reading for reading in whole if kinds * reading.p_value <= rate and reading.pose is None]
    if whole:
        best = min(whole, key=lambda reading: reading.order)
        p, payload = match.p_adjusted, next((kind.payload for kind in whole if kind.payload is not None), None)
        regions.append(
            Region(match.key, match.key_id, WHOLE_IMAGE, p, matches=best.matches, pose=best.pose, payload=payload)
        )
    return regions


def detection_record(detection: Detection) -> dict[str, Any]:
    """A detection as one flat mapping, for JSON: the best match's figures, then all keys."""
    spec, best = detection.spec, detection.best
    return {
        "detected": detection.detected,
        "key": detection.key,
        "key_id": detection.key_id,
        "p_value": detection.p_value,
        "best_match": best.key,
        "carrier": best.carrier,
        "matches": best.matches,
        "n_bits": detection.n_bits,
        "bits": detection.bits,
        "fpr": spec.fpr,
        "threshold": detection.threshold,
        "test": spec.test,
        "search": spec.search,
        "locate": spec.locate,
        "pose": detection.pose,
        "payload": detection.payload,
        "n_keys": detection.n_keys,
        "regions": [region.record() for region in detection.regions],
        "keys": [vars(match) for match in detection.keys],
    }
