"""Batches of files: names for the outputs, errors that a batch survives, and a ledger to resume from."""

import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from privgen import __version__
from privgen.errors import PrivgenError, UsageError
from privgen.io.files import IMAGE_SUFFIXES, iter_image_files, refuse_existing, write_bytes
from privgen.io.fingerprints import bytes_fingerprint, file_fingerprint
from privgen.io.images import SAVE_FORMATS, LoadedImage, can_write, encode_image
from privgen.io.journal import Journal
from privgen.io.metadata import Keeping


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
    """

    overwrite: bool = False
    progress: bool = False
    keep_format: bool = False
    metadata: Keeping = "keep"
    quality: int | None = None

    def suffix(self, source: Path) -> str:
        """The suffix of the output for a source: that of the source if it is kept and can be written, else ".png"."""
        return source.suffix if self.keep_format and can_write(source.suffix) else ".png"

    def made_by(self) -> str:
        """What the content of an output depends on, for a `Ledger`; empty for the defaults."""
        metadata = "" if self.metadata == "keep" else f", metadata={self.metadata}"
        return metadata + ("" if self.quality is None else f", quality={self.quality}")

    def encode(self, image: LoadedImage, target: Path) -> tuple[bytes, tuple[str, ...]]:
        """Encode an image for a file.

        Args:
            image: what was read from the source, with new pixels.
            target: the file, which is not written.

        Returns:
            The content of the file, and notes on what it lacks of its source.

        Raises:
            OSError, ValueError: the format cannot hold the image.
        """
        kind = SAVE_FORMATS[target.suffix.lower()]
        data = encode_image(
            replace(image, metadata=image.metadata.filtered(self.metadata)), kind, quality=self.quality
        )
        notes = image.metadata.left_out
        if self.keep_format and image.format not in (kind, "MPO", None):
            notes += (f"it became {kind}, because {image.format} files are not written here",)
        return data, notes


def reason(error: BaseException) -> str:
    """Return the message of an exception on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def progress_bar(total: int, what: str, *, shown: bool = True) -> Any:
    """Return a progress bar on standard error, to use as a context manager. It shows on a terminal only.

    Args:
        total: number of images.
        what: what happens to the images, such as "embed".
        shown: whether to show it at all.
    """
    return tqdm(total=total, desc=what, unit="image", disable=None if shown else True)


def name_outputs(
    paths: Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    suffix_of: Callable[[Path], str] = lambda source: ".png",
) -> dict[Path, Path]:
    """Choose an output file for each input. Nothing is written.

    An output has the name of its source and a suffix of its own. If two outputs would have the same name, they keep
    the suffixes of their sources (a.jpg.png, a.webp.png), or get as many parent folders in front as tell them apart
    (london-a.png, paris-a.png).

    Args:
        paths: image files, and folders of them.
        folder: folder for the outputs; it need not exist.
        suffix_of: returns the suffix of the output for a source.

    Returns:
        The output of each source, in the order of `paths`. A file that is named twice is there once.

    Raises:
        UsageError: there is no image, inputs come from the output folder, the output folder is a file, or two outputs
            cannot be told apart.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file; name a folder for the results.")
    if not folder.exists() and folder.suffix.lower() in IMAGE_SUFFIXES:
        raise UsageError(f"{folder} looks like a file; name a folder for the results.")
    sources: dict[Path, Path] = {}
    for source in iter_image_files(paths):
        sources.setdefault(Path(os.path.abspath(source)), source)  # noqa: PTH100 - resolves "..", but no links
        if os.path.realpath(folder) in (os.path.realpath(source.parent), os.path.dirname(os.path.realpath(source))):  # noqa: PTH120
            raise UsageError(f"{folder} is a folder that inputs come from; choose another one for the results.")
    names = _distinct({path: suffix_of(source) for path, source in sources.items()})
    return {sources[path]: folder / name for path, name in names.items()}


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
        path: the journal, in the folder of the outputs; it need not exist.
        made_by: a text of all that an output depends on, except its source and the version of this package.

    Raises:
        PrivgenError: the journal cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], made_by: str) -> None:
        self.made_by = made_by
        self._journal = Journal(path)
        self._records = {record.output: record for record in self._journal.read(lambda record: _Record(**record))}

    def has(self, output: Path, source_sha256: str = "") -> bool:
        """Whether the same work has made a file from the same source, and nobody has changed the file since.

        Args:
            output: the file, in the folder of the ledger.
            source_sha256: fingerprint of the source, see `privgen.io.fingerprints.file_fingerprint`; empty for work
                without a source.
        """
        record = self._records.get(output.name)
        if record is None or replace(record, output_sha256="", figures={}) != self._plan(output, source_sha256):
            return False
        return file_fingerprint(output) == record.output_sha256

    def figures(self, output: Path) -> dict[str, float]:
        """What was measured of a file that `has` finds, by name."""
        return dict(self._records[output.name].figures)

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
        refuse_existing(output, overwrite=overwrite)
        measured = {name: value for name, value in (figures or {}).items() if math.isfinite(value)}
        plan = self._plan(output, source_sha256)
        record = replace(plan, output_sha256=bytes_fingerprint(data), figures=measured)
        # The line comes before the file: if the run is killed in between, the fingerprint will not match.
        with self._journal.appended([asdict(record)]):
            write_bytes(output, data, overwrite=overwrite)
        self._records[output.name] = record

    def _plan(self, output: Path, source_sha256: str) -> _Record:
        return _Record(output.name, source_sha256, self.made_by, __version__)


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
