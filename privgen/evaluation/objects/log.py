"""What was measured of each case, in a journal that a later run of the same work takes up."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privgen.evaluation.objects.readings import Reading, Written
from privgen.io.journal import Journal


LOG = "objects.jsonl"
"""The lines of the first process; those of process 1 are in `objects-1.jsonl`, and so on."""


@dataclass(frozen=True)
class Row:
    """One image with marked objects.

    Attributes:
        setting: that it belongs to.
        number: of the case in its setting.
        written: how its marks were written.
        readings: what was read of it, by what happened to it before; see `privgen.evaluation.objects.run.changes_of`.
    """

    setting: str
    number: int
    written: Written
    readings: Mapping[str, Reading]


class Log:
    """Rows by work: a digest of all that a row depends on.

    Args:
        folder: where the files are; None keeps none.
        rank: number of this process, which writes a file of its own.

    Raises:
        PrivgenError: a file cannot be read.
    """

    def __init__(self, folder: Path | None, rank: int = 0) -> None:
        self._journal = Journal.of_process(folder, LOG, rank)
        self._rows: dict[str, Row] = dict(self._journal.read(_row_of))

    def get(self, work: str) -> Row | None:
        """The row of some work, or None if it has not been done."""
        return self._rows.get(work)

    def add(self, work: str, row: Row) -> None:
        """Write a row down.

        Raises:
            PrivgenError: the file cannot be written.
        """
        self._rows[work] = row
        self._journal.append([{"work": work, **asdict(row)}])


def _row_of(record: dict[str, Any]) -> tuple[str, Row]:
    readings = {name: Reading(**_tuples(values)) for name, values in record["readings"].items()}
    written = Written(**_tuples(record["written"]))
    return str(record["work"]), Row(str(record["setting"]), int(record["number"]), written, readings)


def _tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
