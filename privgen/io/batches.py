"""Batches of files: what outputs are called, what may fail, and a ledger by which an interrupted batch goes on."""

import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from privgen import __version__
from privgen.errors import PrivgenError, UsageError
from privgen.io.files import IMAGE_SUFFIXES, iter_image_files, refuse_existing, write_bytes
from privgen.io.fingerprints import bytes_fingerprint, file_fingerprint
from privgen.io.journal import Journal


FILE_ERRORS = (PrivgenError, OSError, ValueError, MemoryError, torch.OutOfMemoryError)
"""What work on one file may raise without meaning a mistake in this package; the rest of a batch goes on."""


@dataclass(frozen=True)
class BatchOptions:
    """How a batch of files is written.

    Attributes:
        overwrite: replace files that exist and were not made by the same work, instead of refusing.
        progress: show a bar on standard error, if that is a terminal.
        keep_format: write the format of the source where possible, lossy ones too; by default all become PNG.
    """

    overwrite: bool = False
    progress: bool = False
    keep_format: bool = False


def reason(error: BaseException) -> str:
    """What an exception says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def progress_bar(total: int, what: str, *, shown: bool = True) -> Any:
    """A bar on standard error, where that is a terminal; used as a context manager.

    Args:
        total: number of images.
        what: what is done to them.
        shown: whether there is one at all.
    """
    return tqdm(total=total, desc=what, unit="image", disable=None if shown else True)


def name_outputs(
    paths: Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    suffix_of: Callable[[Path], str] = lambda source: ".png",
) -> dict[Path, Path]:
    """Say where the result of each input goes.

    An output has its source's name and the suffix for it. Where two would be one, they keep their sources' suffixes
    (a.jpg.png, a.webp.png), or are preceded by as many parent folders as tell them apart (london-a.png, paris-a.png).
    Nothing is written.

    Args:
        paths: image files, and folders of them.
        folder: of the results; need not exist.
        suffix_of: suffix of the output for a source.

    Returns:
        Output by source, in the order of `paths`; a file that is named twice is there once.

    Raises:
        UsageError: no image, an output folder that inputs come from, or one that is no folder; or names that
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
    """A line of a ledger; equal in all but the output's digest means the same work."""

    output: str
    source_sha256: str
    made_by: str
    version: str
    output_sha256: str = ""


class Ledger:
    """What the files of a folder were made from, and by what: one JSON object a line, the last one of a name counts.

    Args:
        path: the ledger's file, in the folder of the outputs; need not exist.
        made_by: all that an output depends on beside its source and this package's version.
    """

    def __init__(self, path: str | os.PathLike[str], made_by: str) -> None:
        self.made_by = made_by
        self._journal = Journal(path)
        self._records = {record.output: record for record in self._journal.read(lambda record: _Record(**record))}

    def has(self, output: Path, source_sha256: str = "") -> bool:
        """Whether the same work on the same source made a file, and the file is still as it was made.

        Args:
            output: the file, in the ledger's folder.
            source_sha256: see `file_fingerprint`; empty for work without a source.
        """
        record = self._records.get(output.name)
        if record is None or replace(record, output_sha256="") != self._plan(output, source_sha256):
            return False
        return file_fingerprint(output) == record.output_sha256

    def write(self, output: Path, data: bytes, source_sha256: str = "", *, overwrite: bool = False) -> None:
        """Write a file whole or not at all, and remember what it was made from.

        Args:
            output: the file, in the ledger's folder, which is made if missing.
            data: its content.
            source_sha256: see `file_fingerprint`.
            overwrite: replace an existing file instead of refusing.

        Raises:
            PrivgenError: the file exists or cannot be written.
        """
        refuse_existing(output, overwrite=overwrite)
        record = replace(self._plan(output, source_sha256), output_sha256=bytes_fingerprint(data))
        # Before the file: if the run ends in between, the digest tells that the file is not there yet.
        with self._journal.appended([asdict(record)]):
            write_bytes(output, data, overwrite=overwrite)
        self._records[output.name] = record

    def _plan(self, output: Path, source_sha256: str) -> _Record:
        return _Record(output.name, source_sha256, self.made_by, __version__)


def _distinct(suffixes: dict[Path, str]) -> dict[Path, str]:
    """A name of its own for each source; given the suffixes of the names."""
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
    """Names for sources that would have the same one, with as little added as possible."""
    names: dict[Path, str] = {}
    for parents in range(max(len(source.parts) for source in group)):
        for whole in (False, True):
            names = {source: _label(source, parents, whole) + suffixes[source] for source in group}
            if len(set(names.values())) == len(group):
                return names
    return names


def _label(source: Path, parents: int, whole: bool) -> str:
    """The last folders of a path and its name, with its suffix or without."""
    folders = source.parts[1:-1]
    return "-".join((*folders[len(folders) - min(parents, len(folders)) :], source.name if whole else source.stem))
