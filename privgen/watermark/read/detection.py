"""Whose mark images carry: from pixels and keys to a decision with a p-value."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privgen.errors import UsageError
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.protocols import N_BITS, config_value
from privgen.watermark.read.logits import read_logits, to_reader
from privgen.watermark.read.p_values import TESTS, KeyTest, Test, match_keys, p_value, threshold_matches
from privgen.watermark.read.search import AlignedReader
from privgen.watermark.regions import WHOLE_IMAGE, Region


FPR = 1e-6
"""Probability that an unmarked image may be called marked, if nothing else is asked for."""


@dataclass(frozen=True)
class DetectSpec:
    """How marks are detected.

    Attributes:
        fpr: probability, in (0, 1), that an unmarked image is called marked, whatever the number of keys.
        search: also look for marks in what may be cut out of a marked image (at least half of its area, of its own
            shape), turned by up to 45 degrees, or both. Takes some seconds an image; false positives stay as rare.
        test: "weighted" goes by how clearly each bit is read, "binomial" counts the bits that agree; see
            `privgen.watermark.read.p_values`.

    Raises:
        UsageError: a value out of its range.
    """

    fpr: float = FPR
    search: bool = False
    test: Test = "weighted"

    def __post_init__(self) -> None:
        if not 0 < self.fpr < 1:
            raise UsageError(f"expected a false-positive rate in (0, 1), got {self.fpr}")
        if self.test not in TESTS:
            raise UsageError(f"expected the test {' or '.join(TESTS)}, got {self.test!r}")


@dataclass(frozen=True)
class KeyMatch:
    """What one image says about one key.

    Attributes:
        key: name of the key.
        key_id: its public id.
        matches: bits that agree with the key's.
        p_value: probability that an image without the mark agrees as well or better, by the test.
        p_adjusted: the same, corrected for the number of keys and of poses that were tried.
        detected: whether p_adjusted <= fpr.
    """

    key: str
    key_id: str
    matches: int
    p_value: float
    p_adjusted: float
    detected: bool


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
        regions: the parts of the image that keys own; the whole image for each key that is detected.
        best: the key that matches best, whether it is detected or not.
        keys: one entry for each key, in the order given.
        n_bits: number of bits that were read.
        bits: the bits, as text of 0 and 1.
        threshold: matches that suffice if all bits are read equally clearly.
        spec: how it was detected.
        pose: in words, which part of the marked image this is and how it is turned; None for the image as it is.
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
    threshold: int
    spec: DetectSpec
    pose: str | None = None

    def __str__(self) -> str:
        several = len(self.keys) > 1
        corrected = f" for {len(self.keys)} keys" if several else ""
        figures = f"{self.best.matches} of {self.n_bits} bits, p = {self.p_value:.2g}{corrected}"
        if self.detected:
            others = [match.key for match in self.keys if match.detected and match.key != self.key]
            pose = f"; it shows {self.pose}" if self.pose else ""
            return (
                f"carries the mark of {self.key} ({figures}{pose}){'; also of ' if others else ''}{', '.join(others)}"
            )
        which = (
            f"any of the marks of {len(self.keys)} keys; best is {self.best.key}"
            if several
            else (f"the mark of {self.best.key}")
        )
        return f"does not carry {which} ({figures})"


class Detector:
    """Looks for keys in images.

    Args:
        networks: of the model that reads; its aligner is needed for a search only.
        keys: at least one; a key that is given twice counts once.
        spec: how marks are detected.

    Raises:
        UsageError: no key, or a rate that so few bits cannot show.
        PrivgenError: a network cannot be found or read.
    """

    def __init__(self, networks: Networks, keys: Sequence[Key], spec: DetectSpec | None = None) -> None:
        self.keys = tuple({key.key_id: key for key in keys}.values())
        self.spec = spec or DetectSpec()
        if not self.keys:
            raise UsageError("Name at least one key.")
        self.extractor = networks.extractor
        self.reader = AlignedReader(self.extractor, networks.aligner) if self.spec.search else None
        n_bits = int(config_value(self.extractor, "n_bits", N_BITS))
        if threshold_matches(n_bits, self.spec.fpr / len(self.keys)) > n_bits:
            least = float(p_value(n_bits, n_bits)) * len(self.keys)
            raise UsageError(
                f"{n_bits} bits and {len(self.keys)} keys cannot show a rate below {least:.2g}; allow a larger one."
            )
        self.messages = torch.tensor([key.bits(n_bits) for key in self.keys])

    @torch.no_grad()
    def __call__(self, images: Sequence[Tensor]) -> list[Detection]:
        """Look for the keys in images.

        Args:
            images: each (3, H, W) in [0, 1], of any size.

        Returns:
            One detection for each image.
        """
        if self.reader is None:
            logits = read_logits(images, self.extractor, batch_size=len(images))
            rows = match_keys(logits, self.messages, fpr=self.spec.fpr, test=self.spec.test)
            return [self._detection(row) for row in rows]
        small = torch.stack([to_reader(image, self.extractor) for image in images])
        aspects = torch.tensor([image.shape[-1] / image.shape[-2] for image in images])
        found = self.reader(small, self.messages, fpr=self.spec.fpr, aspect=aspects, test=self.spec.test)
        detections = []
        for i in range(len(images)):
            row = []
            for k, message in enumerate(self.messages):
                tried = len(self.keys) * int(found.places[i, k])
                tests = match_keys(
                    found.logits[i, k], message, fpr=self.spec.fpr, candidates=tried, test=self.spec.test
                )
                row.append(tests[0][0])
            detections.append(self._detection(row, found.poses[i].tolist()))
        return detections

    def _detection(self, tests: Sequence[KeyTest], poses: Sequence[Sequence[float]] = ()) -> Detection:
        matches = tuple(
            KeyMatch(key.name, key.key_id, t.matches, t.p_value, t.p_adjusted, t.detected)
            for key, t in zip(self.keys, tests, strict=True)
        )
        index = min(range(len(tests)), key=lambda i: (tests[i].p_adjusted, tests[i].p_value))
        best, test = matches[index], tests[index]
        return Detection(
            detected=best.detected,
            key=best.key if best.detected else None,
            key_id=best.key_id if best.detected else None,
            p_value=best.p_adjusted,
            regions=tuple(Region(m.key, m.key_id, WHOLE_IMAGE, m.p_adjusted) for m in matches if m.detected),
            best=best,
            keys=matches,
            n_bits=test.n_bits,
            bits="".join(map(str, test.bits)),
            threshold=test.threshold,
            spec=self.spec,
            pose=describe_pose(poses[index]) or None if poses and best.detected else None,
        )


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


def detection_record(detection: Detection) -> dict[str, Any]:
    """A detection as one flat mapping, for JSON: the best match's figures, then all keys."""
    spec, best = detection.spec, detection.best
    return {
        "detected": detection.detected,
        "key": detection.key,
        "key_id": detection.key_id,
        "p_value": detection.p_value,
        "best_match": best.key,
        "matches": best.matches,
        "n_bits": detection.n_bits,
        "bits": detection.bits,
        "fpr": spec.fpr,
        "threshold": detection.threshold,
        "test": spec.test,
        "search": spec.search,
        "pose": detection.pose,
        "regions": [vars(region) for region in detection.regions],
        "keys": [vars(match) for match in detection.keys],
    }
