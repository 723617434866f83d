"""Finished runs of `evaluate training`, one JSON object a line, so that a rerun goes on where another was killed."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from privgen.errors import PrivgenError
from privgen.evaluation.training_runs import Checkpoint
from privgen.files import whole_lines


LOG = "runs.jsonl"
"""In the output folder."""


class RunLog:
    """Curves by work, method and seed.

    Args:
        path: the file; need not exist. None keeps them in memory only.

    Raises:
        PrivgenError: the file cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str] | None) -> None:
        self.path = None if path is None else Path(path)
        self._curves = {} if self.path is None else _read(self.path)

    def get(self, work: str, method: str, seed: int) -> list[Checkpoint] | None:
        """The curve of a run, None if it has not ended.

        Args:
            work: all that the curve depends on but method and seed.
            method: its name.
            seed: of the run.
        """
        return self._curves.get((work, method, seed))

    def add(self, work: str, setting: str, method: str, seed: int, curve: list[Checkpoint]) -> None:
        """Write down a run that has ended.

        Raises:
            PrivgenError: the file cannot be written.
        """
        self._curves[work, method, seed] = curve
        if self.path is None:
            return
        row = {"work": work, "setting": setting, "method": method, "seed": seed}
        line = json.dumps({**row, "curve": [asdict(checkpoint) for checkpoint in curve]}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise PrivgenError(f"{self.path} was not written: {error.strerror}; choose another folder.") from error


def _read(path: Path) -> dict[tuple[str, str, int], list[Checkpoint]]:
    """Strange lines are passed over."""
    curves: dict[tuple[str, str, int], list[Checkpoint]] = {}
    for line in whole_lines(path):
        try:
            row: dict[str, Any] = json.loads(line)
            curve = [Checkpoint(**checkpoint) for checkpoint in row["curve"]]
            curves[row["work"], row["method"], int(row["seed"])] = curve
        except (ValueError, KeyError, TypeError):
            continue
    return curves
