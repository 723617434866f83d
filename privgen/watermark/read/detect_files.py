"""Whose mark image files carry."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from privgen.errors import UsageError
from privgen.hub import load_extra, resolve_dtype
from privgen.io.batches import FILE_ERRORS, progress_bar, reason
from privgen.io.files import iter_image_files
from privgen.io.images import load_image
from privgen.watermark.key import Key
from privgen.watermark.protocols import N_BITS, ExtractorLike, config_value
from privgen.watermark.read.p_values import Detection, Test, detect, p_value, threshold_matches
from privgen.watermark.read.search import AlignedReader, Found
from privgen.watermark.write.residual import as_read, read_logits


FPR = 1e-6
"""Probability that an unmarked image may be called marked."""


@dataclass(frozen=True)
class KeyMatch:
    """What one image says about one key.

    Attributes:
        key: name of the key.
        key_id: its public id.
        matches: bits that agree with the key.
        p_value: probability, without a mark, of agreement as good or better by the test.
        p_adjusted: the same, corrected for the number of keys, and of places where the mark was searched for.
        detected: whether p_adjusted <= fpr.
    """

    key: str
    key_id: str
    matches: int
    p_value: float
    p_adjusted: float
    detected: bool


@dataclass(frozen=True)
class DetectedFile:
    """Whose mark one file carries: the best key's figures, then those of all keys.

    Everything but `file` and `error` is empty for a file that could not be read.

    Attributes:
        file: the file.
        key: name of the key that matches best, whether it is detected or not.
        key_id: its public id.
        matches: bits that agree with it.
        n_bits: how many were read.
        bits: what was read, as 0 and 1.
        p_value: see `KeyMatch`, as the next.
        p_adjusted: corrected for the number of keys, and of places where the mark was searched for.
        fpr: probability that an unmarked image is called marked, at most, whatever the number of keys.
        threshold: matches that suffice if all bits are read equally clearly.
        test: which, see `privgen.watermark.read.p_values`.
        detected: whether the file carries the mark of one of the keys.
        keys: one entry for each key, in the order given.
        pose: what part of the marked image it shows and how it is turned, in words, where that was searched for.
        notes: what a user should know, such as that only the first frame of an animation was read.
        error: why it could not be read.
    """

    file: str
    key: str | None = None
    key_id: str | None = None
    matches: int | None = None
    n_bits: int | None = None
    bits: str | None = None
    p_value: float | None = None
    p_adjusted: float | None = None
    fpr: float | None = None
    threshold: int | None = None
    test: Test | None = None
    detected: bool = False
    keys: tuple[KeyMatch, ...] = ()
    pose: str | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None


def detect_files(
    paths: Iterable[str | os.PathLike[str]],
    keys: Sequence[Key],
    *,
    model: str = "mini",
    fpr: float = FPR,
    device: str = "auto",
    dtype: str = "auto",
    batch_size: int = 16,
    search: bool = False,
    test: Test = "weighted",
    progress: bool = False,
    report: Callable[[DetectedFile], None] = lambda file: None,
) -> tuple[DetectedFile, ...]:
    """Say whose mark image files carry.

    A file that cannot be read does not stop the rest.

    Args:
        paths: image files, and folders of them.
        keys: at least one; a key that is given twice counts once.
        model: the model whose extractor reads: an embedded model's name, a folder or a Hub id.
        fpr: probability that an unmarked image may be called marked, in (0, 1).
        device: see `privgen.hub.resolve_device`.
        dtype: see `privgen.hub.resolve_dtype`, but "auto" is always float32.
        batch_size: images that are read at a time.
        search: look for marks in what may be cut out of a marked image (half of its area at least, in its own shape),
            turned (by 45 degrees at most) or both: some seconds an image. False positives stay as rare as `fpr` says.
        test: "weighted" goes by how clearly bits are read, "binomial" counts them: see `privgen.watermark.read.p_values`.
        progress: show a bar on standard error, if that is a terminal.
        report: called with each file when it is through.

    Returns:
        One entry for each file, in order.

    Raises:
        UsageError: no image, no key, or a rate that so few bits cannot show.
        PrivgenError: the model, or its extractor, cannot be found or read.
    """
    sources = iter_image_files(paths)
    keys = list({key.key_id: key for key in keys}.values())
    if not sources or not keys:
        raise UsageError(f"Name at least one {'image' if keys else 'key'}.")
    extractor = load_extra("extractor", model, device=device)
    reader = None
    if search:
        reader = AlignedReader(extractor, load_extra("aligner", model, device=device))
    if dtype != "auto":
        for network in (extractor, reader.aligner) if reader else (extractor,):
            Module.to(network, resolve_dtype(dtype))  # Diffusers' own `to` warns of what does not matter here
    n_bits = int(config_value(extractor, "n_bits", N_BITS))
    if threshold_matches(n_bits, fpr / len(keys)) > n_bits:
        least = float(p_value(n_bits, n_bits)) * len(keys)
        raise UsageError(
            f"{n_bits} bits and {len(keys)} keys cannot show a rate below {least:.2g}; allow a larger one."
        )
    found, remaining = [], iter(sources)
    with progress_bar(len(sources), "detect", shown=progress) as bar:
        while chunk := list(islice(remaining, batch_size)):
            for file in _detect_chunk(chunk, keys, extractor, reader, n_bits, fpr, test):
                with bar.external_write_mode():
                    report(file)
                found.append(file)
                bar.update()
    return tuple(found)


def _detect_chunk(
    chunk: Sequence[Path],
    keys: Sequence[Key],
    extractor: ExtractorLike,
    reader: AlignedReader | None,
    n_bits: int,
    fpr: float,
    test: Test,
) -> Iterator[DetectedFile]:
    files: dict[Path, DetectedFile] = {}
    small: dict[Path, Tensor] = {}
    aspects: list[float] = []
    for path in chunk:
        try:
            loaded = load_image(path)
            small[path] = as_read(loaded, extractor)
            aspects.append(loaded.pixels.shape[-1] / loaded.pixels.shape[-2])
            files[path] = DetectedFile(str(path), notes=loaded.notes)
        except FILE_ERRORS as error:
            files[path] = DetectedFile(str(path), error=reason(error))
    if small:
        messages = torch.tensor([key.bits(n_bits) for key in keys])
        if reader is None:
            logits = read_logits(small.values(), extractor, batch_size=len(small))
            for path, detections in zip(small, detect(logits, messages, fpr=fpr, test=test), strict=True):
                files[path] = _with_detections(files[path], keys, detections)
        else:
            images = torch.stack(list(small.values()))
            found = reader(images, messages, fpr=fpr, aspect=torch.tensor(aspects), test=test)
            for i, path in enumerate(small):
                files[path] = _with_found(files[path], keys, messages, found, i, fpr=fpr, test=test)
    yield from files.values()


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


def _with_found(
    file: DetectedFile, keys: Sequence[Key], messages: Tensor, found: Found, image: int, **how: Any
) -> DetectedFile:
    """What one image says about keys, each at a place of its own."""
    detections = [
        detect(found.logits[image, k], messages[k], candidates=len(keys) * int(found.places[image, k]), **how)[0][0]
        for k in range(len(keys))
    ]
    return _with_detections(file, keys, detections, found.poses[image].tolist())


def _with_detections(
    file: DetectedFile,
    keys: Sequence[Key],
    detections: Sequence[Detection],
    poses: Sequence[Sequence[float]] | None = None,
) -> DetectedFile:
    matches = tuple(
        KeyMatch(key.name, key.key_id, d.matches, d.p_value, d.p_adjusted, d.detected)
        for key, d in zip(keys, detections, strict=True)
    )
    index = min(range(len(detections)), key=lambda i: (detections[i].p_adjusted, detections[i].p_value))
    best, match = detections[index], matches[index]
    return replace(
        file,
        key=match.key,
        key_id=match.key_id,
        matches=best.matches,
        n_bits=best.n_bits,
        bits="".join(map(str, best.bits)),
        p_value=best.p_value,
        p_adjusted=best.p_adjusted,
        fpr=best.fpr,
        threshold=best.threshold,
        test=best.test,
        detected=best.detected,
        keys=matches,
        pose=describe_pose(poses[index]) or None if poses and best.detected else None,
    )
