"""Append-only files of JSON objects, one a line, that survive being cut off at any byte.

A long run writes down each part that it has finished. When it is started again, it reads the file and goes on.
"""

import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from io import FileIO
from pathlib import Path
from typing import Any, Self, TypeVar

from privgen.errors import PrivgenError
from privgen.io.files import check_regular, make_folder, write_error


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


Value = TypeVar("Value")


class Journal:
    """An append-only file of JSON objects, one a line.

    A line counts as soon as its newline is in the file. A process that is killed while it writes loses the lines of
    that one call and nothing before them. Reading passes over lines that are cut short or hold something else, and
    changes nothing. Appending first removes a last line that was cut short.

    Any number of processes may read a file. Those that write it wait for each other, where the system can lock files.

    Args:
        path: the file. It need not exist. None keeps nothing.
        others: files of other processes, which are read before `path` and never changed.
    """

    def __init__(self, path: str | os.PathLike[str] | None, others: Iterable[Path] = ()) -> None:
        self.path = None if path is None else Path(path)
        self.others = tuple(others)

    @classmethod
    def of_process(cls, folder: Path | None, name: str, rank: int = 0) -> Self:
        """The journal of one of several processes that share a folder; it reads the files of all.

        Args:
            folder: where the files are. None keeps nothing.
            name: of the file that process 0 writes, such as "rows.jsonl".
            rank: number of this process. Process 1 writes "rows-1.jsonl", and so on.
        """
        if folder is None:
            return cls(None)
        first = folder / name
        path = first.with_stem(f"{first.stem}-{rank}") if rank else first
        found = [first, *sorted(folder.glob(f"{first.stem}-*{first.suffix}"))]
        return cls(path, [other for other in found if other != path])

    def read(self, parse: Callable[[dict[str, Any]], Value], work: str | None = None) -> list[Value]:
        """Read the records, oldest first.

        Args:
            parse: makes a value of a record. A record for which it raises ValueError, KeyError, TypeError or
                AttributeError is passed over.
            work: return only records whose field "work" is this; by default all.

        Raises:
            PrivgenError: a file cannot be read.
        """
        values = []
        for path in (*self.others, *([] if self.path is None else [self.path])):
            for line in _whole_lines(path):
                with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
                    record = json.loads(line)
                    if isinstance(record, dict) and work in (None, record.get("work")):
                        values.append(parse(record))
        return values

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Append records and wait until they are on the disk: all of them, or none if that fails.

        Raises:
            PrivgenError: the file cannot be written.
        """
        with self.appended(records):
            pass

    @contextmanager
    def appended(self, records: Iterable[Mapping[str, Any]]) -> Iterator[None]:
        """Append records as `append` does, and take them back if the block raises an exception."""
        if self.path is None:
            yield
            return
        data = b"".join(json.dumps(record).encode() + b"\n" for record in records)
        with ExitStack() as stack:
            try:
                size = _append(self.path, data, stack)
            except OSError as error:
                raise write_error(self.path, error) from error
            try:
                yield
            except BaseException:
                _restore(self.path, size)
                raise


def _whole_lines(path: Path) -> list[bytes]:
    try:
        check_regular(path)
        return path.read_bytes().split(b"\n")[:-1]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise PrivgenError(f"{path} cannot be read: {error.strerror}; choose another folder.") from error


def _append(path: Path, data: bytes, stack: ExitStack) -> int | None:
    """Append whole lines, all or none, and keep the file locked until the stack ends.

    Returns:
        The size that the file had before; None if there was no file.
    """
    make_folder(path.parent)
    new = not path.exists()
    if path.is_symlink():
        # A line that is cut short at the end of the file is removed, which may be a text of yours.
        raise OSError(errno.ELOOP, "it is a link, which may lead to a file of other work")
    if not new:
        check_regular(path)
    file = _open_locked(path, stack)
    size = _size_of_whole_lines(path)
    size = None if new and not size else size
    try:
        file.truncate(size or 0)
        if file.write(data) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(file.fileno())
    except BaseException:
        _restore(path, size)
        raise
    return size


def _open_locked(path: Path, stack: ExitStack) -> FileIO:
    """Open a file to append to it, and lock it until the stack ends, or its process."""
    while True:
        file = stack.enter_context(path.open("ab", buffering=0))
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
        with suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), os.fstat(file.fileno())):
                return file
        # Another process has removed the file while this one waited.


def _size_of_whole_lines(path: Path) -> int | None:
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - 1))
            if file.read(1) in (b"\n", b""):
                return size
            file.seek(0)
            return file.read().rfind(b"\n") + 1
    except (FileNotFoundError, NotADirectoryError):
        return None


def _restore(path: Path, size: int | None) -> None:
    with suppress(OSError):  # the error that is being raised says more
        if size is None:
            path.unlink(missing_ok=True)
        else:
            os.truncate(path, size)
