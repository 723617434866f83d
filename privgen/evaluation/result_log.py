"""Results of the finished parts of an evaluation, in a journal, so that a later run goes on from there."""

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

from privgen.io.journal import Journal


Value = TypeVar("Value")


class ResultLog(ABC, Generic[Value]):
    """Results by work, method and seed.

    A subclass says which field of a record holds the result, and how the result becomes JSON.

    Args:
        journal: where the results are kept. Those that it holds already are taken up.

    Raises:
        PrivgenError: the journal cannot be read.
    """

    field: str

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._results = dict(journal.read(self._entry))

    @abstractmethod
    def encode(self, value: Value) -> Any:
        """Turn a result into what JSON can hold."""

    @abstractmethod
    def decode(self, record: Any) -> Value:
        """Undo `encode`; raise ValueError, KeyError, TypeError or AttributeError for anything else."""

    def get(self, work: str, method: str, seed: int) -> Value | None:
        """Return the result of a part, or None if that part has not finished.

        Args:
            work: fingerprint of all that the result depends on, except method and seed.
            method: name of the method.
            seed: of the run.
        """
        return self._results.get((work, method, seed))

    def add(self, work: str, setting: str, method: str, seed: int, value: Value) -> None:
        """Write down the result of a part. `setting` is for people who read the file.

        Raises:
            PrivgenError: the file cannot be written.
        """
        self._results[work, method, seed] = value
        row = {"work": work, "setting": setting, "method": method, "seed": seed, self.field: self.encode(value)}
        self._journal.append([row])

    def _entry(self, record: dict[str, Any]) -> tuple[tuple[str, str, int], Value]:
        return (record["work"], record["method"], int(record["seed"])), self.decode(record[self.field])
