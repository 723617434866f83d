"""Batches of files: names for the outputs, errors that a batch survives, and a ledger to resume from."""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import torch

from privgen import __version__
from privgen.errors import PrivgenError, UsageError
from privgen.io.files import IMAGE_SUFFIXES, MAX_PIXELS, iter_image_files, refuse_existing, write_bytes
from privgen.io.fingerprints import bytes_fingerprint, file_fingerprint
from privgen.io.images import SAVE_FORMATS, LoadedImage, can_write, encode_image, load_image, refuse_unwritable
from privgen.io.journal import Journal
from privgen.io.metadata import CREDENTIALS_NOTE, Keeping
from privgen.io.progress import Bar
from privgen.provenance.seal import Origin, Seal


FILE_ERRORS = (PrivgenError, OSError, ValueError, MemoryError, torch.OutOfMemoryError)
"""Errors that can come from one bad file. The rest of a batch goes on after them."""


@dataclass(frozen=True)
class BatchOptions:
    """How a batch of files is written.

    Attributes:
        overwrite: replace files that exist and come from other work, instead of refusing.
        progress: show a bar on standard error, if that is a terminal.
        keep_format: write each file in the format of its source, if it can be written, even if it is lossy. By default
            all become PNG.
        metadata: what a file keeps of its metadata; see `privgen.io.metadata.Metadata.filtered`.
        quality: of lossy files, 1..100; None keeps that of a JPEG source. See `privgen.io.images.encode_image`.
        recursive: also take the images in folders inside the folders; the outputs keep the paths below.
        seal: what files say of their origin; None for nothing.
        max_pixels: largest number of pixels of an image that is read; see `privgen.io.images.load_image`.
    """

    overwrite: bool = False
    progress: bool = False
    keep_format: bool = False
    metadata: Keeping = "keep"
    quality: int | None = None
    recursive: bool = False
    seal: Seal | None = None
    max_pixels: int = MAX_PIXELS

    def suffix(self, source: Path) -> str:
        """The suffix of the output for a source: that of the source if it is kept and can be written, else ".png"."""
        return source.suffix if self.keep_format and can_write(source.suffix) else ".png"

    def outputs(self, paths: Iterable[str | os.PathLike[str]], output: str | os.PathLike[str]) -> dict[Path, Path]:
        """Choose an output file for each input, see `name_outputs`."""
        return name_outputs(paths, output, self.suffix, recursive=self.recursive)

    def load(self, source: Path) -> LoadedImage:
        """Read an image of the batch; see `privgen.io.images.load_image`.

        Raises:
            PrivgenError: the file is no image, damaged, or too large.
        """
        return load_image(source, max_pixels=self.max_pixels)

    def made_by(self) -> str:
        """What the content of an output depends on, for a `Ledger`; empty for the defaults."""
        metadata = "" if self.metadata == "keep" else f", metadata={self.metadata}"
        seal = "" if self.seal is None else f", seal={self.seal.fingerprint()}"
        return metadata + ("" if self.quality is None else f", quality={self.quality}") + seal

    def parent_of(self, source: Path, image: LoadedImage) -> tuple[bytes, str] | None:
        """Content and format of a source, for the `Origin` of what is made from it; None if nobody signs.

        The source's credentials become a part of the new ones only if its metadata is kept.

        Args:
            source: the file.
            image: what was read from it.
        """
        if self.seal is None or self.seal.credentials is None:
            return None
        return source.read_bytes(), (image.format or "") if self.metadata == "keep" else ""

    def encode(self, image: LoadedImage, target: Path, origin: Origin | None = None) -> tuple[bytes, tuple[str, ...]]:
        """Encode an image for a file.

        Args:
            image: what was read from the source, with new pixels.
            target: the file, which is not written.
            origin: where the pixels come from, for a seal.

        Returns:
            The content of the file, and notes on what it lacks of its source.

        Raises:
            OSError, ValueError: the format cannot hold the image, or the label.
            PrivgenError: the file cannot be signed.
        """
        kind = SAVE_FORMATS[target.suffix.lower()]
        metadata, notes = image.metadata.filtered(self.metadata), image.metadata.left_out
        if self.seal is None:
            data = encode_image(replace(image, metadata=metadata), kind, quality=self.quality)
        else:
            claim = self.seal.claim(target.name, origin or Origin())
            metadata = self.seal.labelled(metadata, claim, kind)
            data = encode_image(replace(image, metadata=metadata), kind, quality=self.quality)
            data = self.seal.signed(data, claim, kind)
            if claim.parent is not None and claim.parent[1] and self.seal.credentials is not None:
                notes = tuple(note for note in notes if note != CREDENTIALS_NOTE)  # they are in the new ones
        written = {name for suffix, name in SAVE_FORMATS.items() if can_write(suffix)}
        if self.keep_format and image.format not in (*written, "MPO", None):
            notes += (f"it became {kind}, because {image.format} files are not written",)
        return data, notes


def reason(error: BaseException) -> str:
    """Return the message of an exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def progress_bar(total: int, what: str, *, shown: bool = True, unit: str = "image") -> Any:
    """Return a progress bar on standard error, to use as a context manager. It shows on a terminal only.

    Args:
        total: number of images, or of other units.
        what: what happens to the images, such as "embed".
        shown: whether to show it at all.
        unit: what is counted.
    """
    return Bar(total=total, desc=what, unit=unit, disable=None if shown else True)


def name_outputs(
    paths: Iterable[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    suffix_of: Callable[[Path], str] = lambda source: ".png",
    *,
    recursive: bool = False,
) -> dict[Path, Path]:
    """Choose an output file for each input. Nothing is written.

    An output has the name of its source and a suffix of its own. If two outputs would have the same name, they keep
    the suffixes of their sources (a.jpg.png, a.webp.png), or get as many parent folders in front as tell them apart
    (london-a.png, paris-a.png).

    Args:
        paths: image files, and folders of them.
        output: folder for the outputs; it need not exist. For one image, it may be the file to write.
        suffix_of: returns the suffix of the output for a source.
        recursive: also take the images in folders inside the folders; the outputs keep the paths below.

    Returns:
        The output of each source, in the order of `paths`. A file that is named twice is there once.

    Raises:
        UsageError: there is no image, inputs come from the output folder, the output is a file though there are
            several images, or two outputs cannot be told apart.
    """
    folder, places = Path(output), list(map(Path, paths))
    images = iter_image_files(places, recursive=recursive)
    if (names_a_file(folder) or folder.exists()) and not folder.is_dir():
        return {_only(images, places, folder): folder}
    if folder.suffix.lower() in IMAGE_SUFFIXES and not folder.exists():
        raise UsageError(f"{folder} looks like a file; name a folder for the results.")
    below = {image: _below(image, places) if recursive else Path() for image in images}
    sources: dict[Path, Path] = {}
    for source in images:
        sources.setdefault(Path(os.path.abspath(source)), source)  # noqa: PTH100 - resolves "..", but no links
        if os.path.realpath(folder) in (os.path.realpath(source.parent), os.path.dirname(os.path.realpath(source))):  # noqa: PTH120
            raise UsageError(f"{folder} is a folder that inputs come from; choose another one for the results.")
    if recursive and any(_holds(place, folder) for place in places if place.is_dir()):
        raise UsageError(f"{folder} lies in a folder that inputs come from; choose another one for the results.")
    names: dict[Path, Path] = {}
    for parent in dict.fromkeys(below.values()):
        suffixes = {path: suffix_of(source) for path, source in sources.items() if below[source] == parent}
        names |= {path: folder / parent / name for path, name in _distinct(suffixes).items()}
    targets = {source: names[path] for path, source in sources.items()}
    _refuse_originals(targets)
    return targets


def _refuse_originals(targets: Mapping[Path, Path]) -> None:
    """Refuse outputs that are inputs, by way of links in the folder for results."""
    originals = {os.path.realpath(source) for source in targets}
    for target in targets.values():
        if os.path.realpath(target) in originals:
            raise UsageError(f"{target} is a link to an image that goes in; choose another folder for the results.")


def names_a_file(output: str | os.PathLike[str]) -> bool:
    """Whether an output is the file to write, not a folder for results."""
    return Path(output).suffix.lower() in SAVE_FORMATS and not Path(output).is_dir()


def _only(images: Sequence[Path], places: Sequence[Path], output: Path) -> Path:
    """The image that becomes `output`, a file."""
    if len(images) != 1 or places[0].is_dir():
        what = "is a file" if output.exists() else "looks like a file"
        raise UsageError(f"{output} {what}; name a folder for the results.")
    if not names_a_file(output):
        raise UsageError(f"{output} is a file of a format that is not written; name a folder for the result.")
    refuse_unwritable(output)
    if os.path.realpath(output) == os.path.realpath(images[0]):
        raise UsageError(f"{output} is the image itself; choose another name for the result.")
    return images[0]


def _below(image: Path, places: Sequence[Path]) -> Path:
    """The folder of an image, counted from the place that it was found in."""
    for place in places:
        if place.is_dir() and image.is_relative_to(place):
            return image.parent.relative_to(place)
    return Path()


def _holds(place: Path, folder: Path) -> bool:
    return Path(os.path.realpath(folder)).is_relative_to(os.path.realpath(place))


@dataclass(frozen=True)
class _Record:
    """A line of a ledger. Two lines stand for the same work if all but what came out are equal."""

    output: str
    source_sha256: str
    made_by: str
    version: str
    output_sha256: str = ""
    figures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not all(isinstance(value, int | float) for value in self.figures.values()):
            raise TypeError("figures are numbers")


class Ledger:
    """A journal of what the files in a folder were made from, so that an interrupted batch can go on.

    For each file, its last line counts.

    Args:
        path: the journal, in the folder of the outputs; it need not exist. None keeps nothing.
        made_by: a text of all that an output depends on, except its source and the version of this package.

    Raises:
        PrivgenError: the journal cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str] | None, made_by: str) -> None:
        self.made_by = made_by
        self._journal = Journal(path)
        self._read()

    @classmethod
    def of(cls, output: str | os.PathLike[str], name: str, made_by: str) -> Self:
        """The ledger of that name in a folder for results; one that keeps nothing if the output is a single file."""
        return cls(None if names_a_file(output) else Path(output) / name, made_by)

    def has(self, output: Path, source_sha256: str = "") -> bool:
        """Whether the same work has made a file from the same source, and nobody has changed the file since.

        Other processes may write into the same folder: what they have made in the meantime counts too.

        Args:
            output: the file, in the folder of the ledger.
            source_sha256: fingerprint of the source, see `privgen.io.fingerprints.file_fingerprint`; empty for work
                without a source.
        """
        plan = self._plan(output, source_sha256)
        if not self._holds(plan) and self._state() != self._seen and output.exists():
            self._read()
        return self._holds(plan) and file_fingerprint(output) == self._records[plan.output].output_sha256

    def figures(self, output: Path) -> dict[str, float]:
        """What was measured of a file that `has` finds, by name."""
        return dict(self._records[self._name(output)].figures)

    def write(
        self,
        output: Path,
        data: bytes,
        source_sha256: str = "",
        *,
        overwrite: bool = False,
        figures: Mapping[str, float] | None = None,
    ) -> None:
        """Write a file whole or not at all, and note what it was made from.

        Args:
            output: the file, in the folder of the ledger, which is made if missing.
            data: its content.
            source_sha256: see `has`.
            overwrite: replace an existing file instead of refusing.
            figures: what was measured of it, by name.

        Raises:
            PrivgenError: the file exists, or it or the ledger cannot be written. The ledger then stays as it was.
        """
        if not overwrite and output.exists() and self.has(output, source_sha256):
            return  # another process was faster
        refuse_existing(output, overwrite=overwrite)
        measured = {name: value for name, value in (figures or {}).items() if math.isfinite(value)}
        plan = self._plan(output, source_sha256)
        record = replace(plan, output_sha256=bytes_fingerprint(data), figures=measured)
        # The line comes before the file: if the run is killed in between, the fingerprint will not match.
        with self._journal.appended([asdict(record)]):
            write_bytes(output, data, overwrite=overwrite)
        self._records[self._name(output)] = record

    def _read(self) -> None:
        self._seen = self._state()
        self._records = {record.output: record for record in self._journal.read(lambda record: _Record(**record))}

    def _state(self) -> tuple[int, int] | None:
        """What changes when somebody writes the journal."""
        path = self._journal.path
        if path is None or not path.exists():
            return None
        status = path.stat()
        return status.st_size, status.st_mtime_ns

    def _holds(self, plan: _Record) -> bool:
        record = self._records.get(plan.output)
        return record is not None and replace(record, output_sha256="", figures={}) == plan

    def _name(self, output: Path) -> str:
        """The path of an output below the folder of the ledger."""
        folder = None if self._journal.path is None else self._journal.path.parent
        return output.relative_to(folder).as_posix() if folder and output.is_relative_to(folder) else output.name

    def _plan(self, output: Path, source_sha256: str) -> _Record:
        return _Record(self._name(output), source_sha256, self.made_by, __version__)


def _distinct(suffixes: dict[Path, str]) -> dict[Path, str]:
    """Choose a different file name for each source, given the suffix of each name."""
    groups: defaultdict[str, list[Path]] = defaultdict(list)
    for source, suffix in suffixes.items():
        groups[source.stem + suffix].append(source)
    owners: dict[str, Path] = {}
    for group in groups.values():
        for source, name in _told_apart(group, suffixes).items():
            if name in owners:
                raise UsageError(f"{owners[name]} and {source} would both become {name}; do one after the other.")
            owners[name] = source
    names = {source: name for name, source in owners.items()}
    return {source: names[source] for source in suffixes}


def _told_apart(group: Sequence[Path], suffixes: dict[Path, str]) -> dict[Path, str]:
    """Choose different names for sources of the same name, with as little added as possible."""
    names: dict[Path, str] = {}
    for parents in range(max(len(source.parts) for source in group)):
        for whole in (False, True):
            names = {source: _label(source, parents, whole) + suffixes[source] for source in group}
            if len(set(names.values())) == len(group):
                return names
    return names


def _label(source: Path, parents: int, whole: bool) -> str:
    """Join the last folders of a path and its name, with or without the suffix."""
    folders = source.parts[1:-1]
    return "-".join((*folders[len(folders) - min(parents, len(folders)) :], source.name if whole else source.stem))
