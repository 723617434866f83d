"""What was measured in each cell, in a journal that a later run of the same work takes up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privgen.evaluation.protection.plan import Cell
from privgen.io.journal import Journal


LOG = "protection.jsonl"
"""The lines of the first process; those of process 1 are in `protection-1.jsonl`, and so on."""


@dataclass(frozen=True)
class Row:
    """The images that an adversary draws after so many training steps, as the judge sees them.

    Attributes:
        cell: what was trained on what.
        effort: training steps; 0 for the model before it is personalised.
        guidance_scale: with which the images were drawn.
        score: mean probability that an image shows the subject.
        similarity: mean cosine of the images' features and those of clean pictures of the subject.
        psnr_db: of the protected images against the clean ones; None for cells without protection.
        visible_de_p99: visible difference of the protected images; None likewise.
        seconds_per_image: that the protection took; None likewise.
        seconds: that the whole cell took, without the protection.
        sheet: some of the images side by side, as a data URI; empty for most cells.
    """

    cell: Cell
    effort: int
    guidance_scale: float
    score: float
    similarity: float
    psnr_db: float | None = None
    visible_de_p99: float | None = None
    seconds_per_image: float | None = None
    seconds: float = 0.0
    sheet: str = ""


class Log:
    """Rows by cell.

    Args:
        folder: where the files are; None keeps none.
        works: for each cell all that its rows depend on; lines of other work are passed over.
        rank: number of this process, which writes a file of its own.

    Raises:
        PrivgenError: a file cannot be read.
    """

    def __init__(self, folder: Path | None, works: Mapping[Cell, str], rank: int = 0) -> None:
        self.works = works
        self._journal = Journal.of_process(folder, LOG, rank)
        self._cells: dict[Cell, list[Row]] = dict(self._journal.read(self._rows))

    def get(self, cell: Cell) -> list[Row] | None:
        """The rows of a cell, or None if it has not been measured."""
        return self._cells.get(cell)

    def add(self, cell: Cell, rows: Sequence[Row]) -> None:
        """Write down a cell.

        Raises:
            PrivgenError: the file cannot be written.
        """
        self._cells[cell] = list(rows)
        parts = [{name: value for name, value in asdict(row).items() if name != "cell"} for row in rows]
        self._journal.append([{"work": self.works[cell], "cell": asdict(cell), "rows": parts}])

    def _rows(self, record: dict[str, Any]) -> tuple[Cell, list[Row]]:
        cell = Cell(**record["cell"])
        if self.works.get(cell) != record["work"]:
            raise ValueError("expected a cell of this work")
        return cell, [Row(cell, **row) for row in record["rows"]]
