"""Whose mark image files carry."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from privgen.errors import UsageError
from privgen.io.batches import FILE_ERRORS, name_outputs, progress_bar, reason
from privgen.io.files import MAX_PIXELS, iter_image_files
from privgen.io.images import from_pil, load_image, save_image
from privgen.io.pixels import floats
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.objects.overlay import overlay
from privgen.watermark.read.detection import Detection, Detector, DetectSpec, detection_record
from privgen.watermark.registry.found import FoundRecord, records_of
from privgen.watermark.registry.registry import Registry


BATCH_SIZE = 16
"""Images that are read at a time, if they are small."""
BATCH_PIXELS = 2**23
"""Pixels from which on no further image is read at the same time."""


@dataclass(frozen=True)
class DetectedFile:
    """What was found in one file.

    Attributes:
        file: the file.
        detection: whose mark it carries; None for a file that could not be read.
        notes: what you should know, such as that only the first frame of an animation was read.
        error: why the file could not be read.
        records: what a registry knows of the marks.
    """

    file: str
    detection: Detection | None = None
    notes: tuple[str, ...] = ()
    error: str | None = None
    records: tuple[FoundRecord, ...] = ()

    @property
    def detected(self) -> bool:
        """Whether the file carries the mark of one of the keys."""
        return self.detection is not None and self.detection.detected

    def record(self) -> dict[str, Any]:
        """One flat mapping, for JSON."""
        found = {"detected": False} if self.detection is None else detection_record(self.detection)
        records = [record.record() for record in self.records]
        return {"file": self.file, **found, "records": records, "notes": list(self.notes), "error": self.error}


@dataclass(frozen=True)
class Overlays:
    """Where pictures go that show who owns what in an image.

    Attributes:
        folder: for the pictures, PNG files with the names of the images; made if missing.
        overwrite: replace files that exist.
    """

    folder: Path
    overwrite: bool = False


@dataclass(frozen=True, eq=False)
class _Read:
    """A file before marks are looked for; without pixels (3, H, W) if it could not be read."""

    path: Path
    file: DetectedFile
    pixels: Tensor | None = None


def detect_files(
    paths: Iterable[str | os.PathLike[str]],
    keys: Sequence[Key],
    *,
    networks: Networks | None = None,
    spec: DetectSpec | None = None,
    progress: bool = False,
    overlays: Overlays | None = None,
    max_pixels: int = MAX_PIXELS,
    report: Callable[[DetectedFile], None] = lambda file: None,
    registry: Registry | None = None,
) -> tuple[DetectedFile, ...]:
    """Say whose mark image files carry.

    A file that cannot be read does not stop the rest.

    Args:
        paths: image files, and folders of them.
        keys: at least one, unless there is a registry; a key that is given twice counts once.
        networks: of the model that reads; by default those of mini.
        spec: how marks are detected.
        progress: show a bar on standard error, if that is a terminal.
        overlays: draw who owns what, of each file in which a key is found.
        max_pixels: largest number of pixels of an image that is read; see `privgen.io.images.load_image`.
        report: called with each file when it is done.
        registry: whose keys are looked for, too, also the revoked ones. Each file says what it knows of the marks that
            are found. Detections then list only the keys that are detected, and the best.

    Returns:
        One entry for each file, in order.

    Raises:
        UsageError: no image, no key, or a rate that so few bits cannot show.
        PrivgenError: the model, or its networks, cannot be found or read.
    """
    sources = iter_image_files(paths)
    if not sources:
        raise UsageError("Name at least one image.")
    targets = {} if overlays is None else name_outputs(sources, overlays.folder)
    every = [*keys, *(registry.keys() if registry is not None else ())]
    detector = Detector(networks or Networks(), every, spec, every=registry is None)
    found, remaining = [], iter(sources)
    with progress_bar(len(sources), "detect", shown=progress) as bar:
        while chunk := _read_chunk(remaining, max_pixels):
            for file in _detect_chunk(chunk, detector, targets, overwrite=overlays is not None and overlays.overwrite):
                if registry is not None and file.detection is not None:
                    file = replace(file, records=records_of(registry, file.detection))
                with bar.external_write_mode():
                    report(file)
                found.append(file)
                bar.update()
    return tuple(found)


def _read_chunk(remaining: Iterator[Path], max_pixels: int) -> list[_Read]:
    """Read the next files, as many as fit into one batch; none if there are no more."""
    chunk, total = [], 0
    for path in remaining:
        try:
            loaded = load_image(path, max_pixels=max_pixels)
            chunk.append(_Read(path, DetectedFile(str(path), notes=loaded.notes), loaded.stored))
            total += loaded.height * loaded.width
        except FILE_ERRORS as error:
            chunk.append(_Read(path, DetectedFile(str(path), error=reason(error))))
        if len(chunk) == BATCH_SIZE or total >= BATCH_PIXELS:
            break
    return chunk


def _detect_chunk(
    chunk: Sequence[_Read], detector: Detector, targets: Mapping[Path, Path], *, overwrite: bool
) -> Iterator[DetectedFile]:
    """Detect marks in some files; where a file has a target, draw who owns what."""
    images = [read.pixels for read in chunk if read.pixels is not None]
    detections = iter(detector(images) if images else [])
    for read in chunk:
        if read.pixels is None:
            yield read.file
            continue
        file = replace(read.file, detection=(detection := next(detections)))
        if read.path in targets and detection.regions:
            try:
                picture = from_pil(overlay(floats(read.pixels), detection.regions))
                save_image(picture, targets[read.path], overwrite=overwrite)
            except FILE_ERRORS as error:
                file = replace(file, error=reason(error))
        yield file
