"""Read folders and write files: a file appears whole or not at all, and replaces nothing unasked."""

import errno
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO

from privgen.errors import PrivgenError, UsageError


HEIF_PACKAGE = next((name for name in ("pillow_heif", "pi_heif") if find_spec(name)), None)
"""The package that reads HEIC files, if there is one. pi_heif reads only. pillow_heif also writes; it is no extra of
privgen, because it brings a library under the GPL."""

IMAGE_SUFFIXES = frozenset(
    {
        ".avif",
        ".bmp",
        ".gif",
        ".j2k",
        ".jp2",
        ".jpe",
        ".jpeg",
        ".jpg",
        ".pgm",
        ".png",
        ".ppm",
        ".tif",
        ".tiff",
        ".webp",
    }
) | (frozenset({".heic", ".heif"}) if HEIF_PACKAGE else frozenset())
"""Endings of the files that a folder is searched for. A file that is named by itself may have any."""

RAW_SUFFIXES = frozenset(
    {".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".iiq", ".kdc", ".mef", ".mos", ".mrw", ".nef"}
    | {".nrw", ".orf", ".pef", ".raf", ".raw", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"}
)
"""Endings of the raw files of cameras, which are not read: they must be developed first."""

MAX_PIXELS = 89_478_485
"""Largest number of pixels of an image that is read, if you allow no more: 256 MiB of RGB, the limit of Pillow."""

SMALL = 2**24
"""Bytes that a file of settings, a recipe or an index of a model may have."""

_REASONS = {
    errno.ENOSPC: "the disk is full; free some space and run it again",
    errno.EDQUOT: "the disk quota is used up; free some space and run it again",
    errno.EFBIG: "the file is larger than allowed here; raise the limit or write to another disk",
    errno.EACCES: "permission denied; choose a folder that you may write to",
    errno.EPERM: "permission denied; choose a folder that you may write to",
    errno.EROFS: "the disk is read-only; choose another folder",
    errno.ENOTDIR: "a part of its path is a file, not a folder; choose another path",
    errno.ENAMETOOLONG: "its name is too long; choose a shorter one",
}


@contextmanager
def atomic_write(path: str | os.PathLike[str], *, overwrite: bool = False, mode: int = 0o666) -> Iterator[BinaryIO]:
    """Open a new binary file that takes its name only once it is complete and on the disk.

    The bytes go to a hidden temporary file in the same folder. If the block ends without an exception, the temporary
    file is synced and renamed. Otherwise it is removed, and `path` stays as it was. Missing parent folders are made.

    Args:
        path: the file to write. A symbolic link is followed.
        overwrite: replace an existing file instead of refusing.
        mode: permissions of the file from its first moment, less the process's umask.

    Yields:
        The temporary file, open for writing.

    Raises:
        PrivgenError: `path` exists and may not be replaced, or it cannot be written (full disk, permissions).
    """
    named = Path(path)
    refuse_existing(named, overwrite=overwrite)
    target = Path(os.path.realpath(named))
    # Its name does not build on the target's, which may already be as long as the file system allows.
    temporary = target.parent / f".privgen-{secrets.token_hex(8)}.tmp"
    try:
        make_folder(target.parent)
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, target, overwrite=overwrite)
    except FileExistsError as error:
        raise _exists(named) from error
    except OSError as error:
        raise write_error(named, error) from error
    finally:
        with suppress(OSError):  # if its folder could not be made, there is nothing to remove
            temporary.unlink(missing_ok=True)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, overwrite: bool = False, mode: int = 0o666) -> None:
    """Write a whole file with `atomic_write`."""
    with atomic_write(path, overwrite=overwrite, mode=mode) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str, *, overwrite: bool = False, mode: int = 0o666) -> None:
    """Write a whole UTF-8 file with `atomic_write`."""
    write_bytes(path, text.encode(), overwrite=overwrite, mode=mode)


def check_regular(path: str | os.PathLike[str]) -> None:
    """Check that a path is a regular file, before it is opened: pipes and devices may give no data, or no end of it.

    Raises:
        OSError: there is no such file, or it is something else.
    """
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file", os.fspath(path))


def read_small(path: str | os.PathLike[str], largest: int = SMALL) -> bytes:
    """Return the content of a small regular file, such as settings or a recipe.

    Args:
        path: the file.
        largest: bytes that it may have.

    Raises:
        OSError: there is no such file, it is no regular file, too large, or cannot be read.
    """
    check_regular(path)
    with Path(path).open("rb") as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise OSError(errno.EFBIG, f"it has more than {largest:,} bytes", os.fspath(path))
    return content


def refuse_existing(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Check that `path` may be written, before any work is spent on its content.

    Raises:
        PrivgenError: `path` is a folder or a special file, or it exists and `overwrite` is false.
    """
    target = Path(path)
    try:
        if target.is_dir():
            raise PrivgenError(f"{target} is a folder; name a file in it.")
        if target.exists() and not target.is_file():
            raise PrivgenError(f"{target} is not a regular file; choose another path.")
        if not overwrite and (target.exists() or target.is_symlink()):
            raise _exists(target)
    except OSError as error:
        raise write_error(target, error) from error


def make_folder(folder: Path) -> None:
    """Make a folder and its parents, unless they exist.

    Raises:
        OSError: a part of the path is a file, or the system refuses.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def write_error(path: Path, error: OSError) -> PrivgenError:
    """The error to raise when the system refuses to write `path`: one sentence with the reason and a remedy."""
    reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}; choose another path")
    return PrivgenError(f"{path} was not written: {reason}.")


def iter_image_files(paths: Iterable[str | os.PathLike[str]], *, recursive: bool = False) -> list[Path]:
    """List image files: those named, and those inside the folders named, in the same order everywhere.

    Args:
        paths: files and folders. A file stays in the list even if it is missing or no image, so that the caller can
            report it where it reads it. Of a folder the list holds the files with a suffix of `IMAGE_SUFFIXES`, sorted
            by name, without hidden ones.
        recursive: also look into the folders inside the folders; hidden folders and links to folders are left out.

    Returns:
        The files in the order of `paths`, each once.

    Raises:
        UsageError: a folder holds no images, or cannot be listed.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        found.update(dict.fromkeys(_images_in(path, recursive=recursive) if path.is_dir() else [path]))
    return list(found)


def iter_other_files(paths: Iterable[str | os.PathLike[str]], *, recursive: bool = False) -> list[Path]:
    """List the files inside the folders named that `iter_image_files` leaves out, without hidden ones and journals."""
    return [
        file
        for path in map(Path, paths)
        if path.is_dir()
        for file in _files_in(path, recursive=recursive)
        if file.suffix.lower() not in {*IMAGE_SUFFIXES, ".jsonl"}
    ]


def _images_in(folder: Path, *, recursive: bool) -> list[Path]:
    images = [file for file in _files_in(folder, recursive=recursive) if file.suffix.lower() in IMAGE_SUFFIXES]
    if not images:
        deeper = "" if recursive else ", or pass --recursive if they are in folders inside it"
        raise UsageError(f"The folder {folder} holds no images; name one that does, or the files themselves{deeper}.")
    return images


def _files_in(folder: Path, *, recursive: bool) -> list[Path]:
    found: list[Path] = []
    waiting = [folder]  # the next one last; no recursion, since folders may be nested deeper than calls
    while waiting:
        entry = waiting.pop()
        try:
            if entry is not folder and entry.is_file():
                found.append(entry)
            elif entry is folder or (recursive and entry.is_dir() and not entry.is_symlink()):
                waiting += sorted((one for one in entry.iterdir() if not one.name.startswith(".")), reverse=True)
        except OSError as error:
            raise UsageError(f"The folder {entry} cannot be read: {error.strerror}.") from error
    return found


def _publish(temporary: Path, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(target)
        return
    try:
        # A link, unlike a rename, fails if another process has made the target in the meantime.
        target.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        refuse_existing(target)
        temporary.replace(target)


def _exists(path: Path) -> PrivgenError:
    return PrivgenError(f"{path} exists; choose another path, or pass --overwrite (overwrite=True in Python).")
