"""Files in and out: outputs appear whole or not at all, and replace nothing unasked."""

import errno
import os
import secrets
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from privgen.errors import PrivgenError, UsageError


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
)
"""What a folder is searched for; a file named by itself is taken whatever it is called."""

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
    """Open a new binary file that takes its name only when it is complete and on the disk.

    The bytes go to a hidden temporary file in the same folder. When the block ends without an exception, it is
    flushed, synced and renamed; otherwise it is removed and `path` is as it was. Missing parent folders are made.

    Args:
        path: the file to write. A symbolic link is followed.
        overwrite: replace an existing file instead of refusing.
        mode: permissions of the file from its first moment, before the process's umask.

    Yields:
        The temporary file, open for writing.

    Raises:
        PrivgenError: `path` exists and may not be replaced, or it cannot be written (full disk, permissions).
    """
    named = Path(path)
    refuse_existing(named, overwrite=overwrite)
    target = Path(os.path.realpath(named))
    # Independent of the target's name, which may already be as long as the file system allows.
    temporary = target.parent / f".privgen-{secrets.token_hex(8)}.tmp"
    try:
        _make_folder(target.parent)
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        _publish(temporary, target, overwrite=overwrite)
    except FileExistsError as error:
        raise _exists(named) from error
    except OSError as error:
        reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}; choose another path")
        raise PrivgenError(f"{named} was not written: {reason}.") from error
    finally:
        _remove(temporary)


def write_bytes(path: str | os.PathLike[str], data: bytes, *, overwrite: bool = False, mode: int = 0o666) -> None:
    """Write a whole file with `atomic_write`."""
    with atomic_write(path, overwrite=overwrite, mode=mode) as file:
        file.write(data)


def write_text(path: str | os.PathLike[str], text: str, *, overwrite: bool = False, mode: int = 0o666) -> None:
    """Write a whole UTF-8 file with `atomic_write`."""
    write_bytes(path, text.encode(), overwrite=overwrite, mode=mode)


def refuse_existing(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Check that `path` may be written, before work is spent on what shall go there.

    Raises:
        PrivgenError: It is a folder or a special file, or it exists and `overwrite` is false.
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
        reason = _REASONS.get(error.errno or 0, f"{error.strerror or error}; choose another path")
        raise PrivgenError(f"{target} cannot be written: {reason}.") from error


def iter_image_files(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Expand folders into the image files directly inside them, in an order that is the same everywhere.

    Args:
        paths: files and folders. Files are kept as they are, also missing and strange ones, so that each of them can
            be reported where it is read; a folder's files are those with a suffix of `IMAGE_SUFFIXES`, without hidden
            ones, sorted by name.

    Returns:
        The files in the order of `paths`, each once.

    Raises:
        UsageError: A folder holds no images, or cannot be listed.
    """
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            found.update(dict.fromkeys(_images_in(path)))
        else:
            found[path] = None
    return list(found)


def _images_in(folder: Path) -> list[Path]:
    try:
        images = sorted(
            entry
            for entry in folder.iterdir()
            if entry.suffix.lower() in IMAGE_SUFFIXES and not entry.name.startswith(".") and entry.is_file()
        )
    except OSError as error:
        raise UsageError(f"The folder {folder} cannot be read: {error.strerror}.") from error
    if not images:
        raise UsageError(f"The folder {folder} holds no images; name one that does, or the files themselves.")
    return images


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from error


def _publish(temporary: Path, target: Path, *, overwrite: bool) -> None:
    if overwrite:
        temporary.replace(target)
        return
    try:
        # A link, unlike a rename, fails when another process has created the target meanwhile.
        target.hardlink_to(temporary)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links
        refuse_existing(target)
        temporary.replace(target)


def _remove(temporary: Path) -> None:
    try:
        temporary.unlink(missing_ok=True)
    except OSError:
        # Its folder could not even be made, or has gone: there is nothing of ours to remove.
        return


def _exists(path: Path) -> PrivgenError:
    return PrivgenError(f"{path} exists; choose another path, or pass --overwrite (overwrite=True in Python).")


def whole_lines(path: str | os.PathLike[str]) -> list[bytes]:
    """Lines of a file that grows line by line; none if it does not exist.

    A last line that was cut short is taken away, so that the next one stands by itself.

    Raises:
        PrivgenError: it cannot be read, or not be shortened.
    """
    source = Path(path)
    try:
        data = source.read_bytes() if source.exists() else b""
        whole = data[: data.rfind(b"\n") + 1]
        if whole != data:
            os.truncate(source, len(whole))
    except OSError as error:
        raise PrivgenError(f"{source} cannot be read: {error.strerror}; choose another folder.") from error
    return whole.split(b"\n")
