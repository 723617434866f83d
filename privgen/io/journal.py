"""Finished parts of an evaluation, one JSON object a line, so that a rerun goes on where another was killed."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Generic, TypeVar

from privgen.errors import PrivgenError
from privgen.io.files import whole_lines


Value = TypeVar("Value")


class KeyedLog(ABC, Generic[Value]):
    """Values by work, method and seed.

    A family says under which name lines hold the value, and what it is in the terms of JSON.

    Args:
        path: the file; need not exist. None keeps the values in memory only.

    Raises:
        PrivgenError: the file cannot be read.
    """

    field: str

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self._values = {} if self.path is None else self._read(self.path)

    @abstractmethod
    def encode(self, value: Value) -> Any:
        """In the terms of JSON."""

    @abstractmethod
    def decode(self, record: Any) -> Value:
        """What `encode` has encoded; a ValueError, KeyError, TypeError or AttributeError if it is something else."""

    def get(self, work: str, method: str, seed: int) -> Value | None:
        """The value of a part, None if it has not ended.

        Args:
            work: all that the value depends on but method and seed.
            method: its name.
            seed: of the run.
        """
        return self._values.get((work, method, seed))

    def add(self, work: str, setting: str, method: str, seed: int, value: Value) -> None:
        """Write down a part that has ended; `setting` is for the reader of the file.

        Raises:
            PrivgenError: the file cannot be written.
        """
        self._values[work, method, seed] = value
        if self.path is None:
            return
        row = {"work": work, "setting": setting, "method": method, "seed": seed, self.field: self.encode(value)}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise PrivgenError(f"{self.path} was not written: {error.strerror}; choose another folder.") from error

    def take_up(self, path: Path) -> None:
        """Take up the values of another file, such as another process's, without changing it.

        Raises:
            PrivgenError: the file cannot be read.
        """
        try:
            lines = path.read_bytes().split(b"\n")
        except OSError as error:
            raise PrivgenError(f"{path} cannot be read: {error.strerror}; choose another folder.") from error
        self._values |= self._decoded(lines)

    def _read(self, path: Path) -> dict[tuple[str, str, int], Value]:
        return self._decoded(whole_lines(path))

    def _decoded(self, lines: Iterable[bytes]) -> dict[tuple[str, str, int], Value]:
        """Strange lines are passed over."""
        values = {}
        for line in lines:
            try:
                row: dict[str, Any] = json.loads(line)
                values[row["work"], row["method"], int(row["seed"])] = self.decode(row[self.field])
            except (ValueError, KeyError, TypeError, AttributeError):
                continue
        return values
