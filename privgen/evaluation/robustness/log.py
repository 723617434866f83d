"""What was read, image by image, as JSON lines that a later run of the same work takes up."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from privgen.errors import PrivgenError
from privgen.io.files import whole_lines


LOG = "robustness.jsonl"
"""The lines of the first process; those of process 1 are in `robustness-1.jsonl`, and so on."""


@dataclass(frozen=True)
class Row:
    """One image under one attack, as one method reads it.

    Attributes:
        method: name.
        attack: key; "clean" is none.
        image: number.
        marked: weighed bits that were read from the marked image, as `privgen.watermark.read.bits.weigh_bits` returns them.
        unmarked: the same from the image without a mark, under the same attack and random draws; None where that was
            not asked for.
        psnr_db: attacked marked image against the marked one; of "clean" marked against unmarked. None is infinite.
        ssim: likewise.
        places: what the p-value of `marked` is to be multiplied by, because the mark was searched for.
        unmarked_places: the same of `unmarked`, which then was searched for the key of the image alone; 0 where it
            was not searched, and is compared with all keys.
        st_lpips: of the images that `psnr_db` compares; None where it is not installed.
        features: of the attacked marked image, as `privgen.evaluation.robustness.perception` writes them; None where
            no Frechet distance is asked for, or its network is not installed.
    """

    method: str
    attack: str
    image: int
    marked: list[int]
    unmarked: list[int] | None
    psnr_db: float | None
    ssim: float
    places: int = 1
    unmarked_places: int = 0
    st_lpips: float | None = None
    features: str | None = None


class Log:
    """Rows by method, attack and image.

    Args:
        folder: where the files are; None keeps none.
        works: for each (method, attack) all that its rows depend on; lines of other work are passed over.
        rank: number of this process, which writes a file of its own.

    Raises:
        PrivgenError: a file cannot be read.
    """

    def __init__(self, folder: Path | None, works: Mapping[tuple[str, str], str], rank: int = 0) -> None:
        self.works = works
        self.path = None if folder is None else folder / (f"robustness-{rank}.jsonl" if rank else LOG)
        self._rows: dict[tuple[str, str, int], Row] = {}
        for path in [] if folder is None else sorted(folder.glob("robustness*.jsonl")):
            self._keep(_read(path, works))
        if self.path is not None:
            whole_lines(self.path)  # the next line stands by itself

    def get(self, method: str, attack: str, numbers: Iterable[int]) -> list[Row] | None:
        """The rows of images, or None if one is missing."""
        rows = [self._rows.get((method, attack, number)) for number in numbers]
        return [row for row in rows if row is not None] if None not in rows else None

    def add(self, rows: Iterable[Row]) -> None:
        """Write rows down.

        Raises:
            PrivgenError: the file cannot be written.
        """
        rows = list(rows)
        self._keep(rows)
        if self.path is None:
            return
        lines = [json.dumps({"work": self.works[row.method, row.attack], **asdict(row)}) + "\n" for row in rows]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(lines))
        except OSError as error:
            raise PrivgenError(f"{self.path} was not written: {error.strerror}; choose another folder.") from error

    def _keep(self, rows: Iterable[Row]) -> None:
        self._rows |= {(row.method, row.attack, row.image): row for row in rows}


def work_id(*parts: str) -> str:
    """Sixteen hexadecimal digits that stand for all that a row depends on."""
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def finite_or_none(value: float) -> float | None:
    """A number that JSON has, or None."""
    return value if math.isfinite(value) else None


def _read(path: Path, works: Mapping[tuple[str, str], str]) -> list[Row]:
    """Rows of this work; lines that are none, such as one that was cut short, are passed over."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise PrivgenError(f"{path} cannot be read: {error.strerror}; choose another folder.") from error
    rows = []
    for line in lines:
        try:
            record = json.loads(line)
            work = record.pop("work")
            row = Row(**record)
            if works.get((row.method, row.attack)) == work and isinstance(row.marked, list):
                rows.append(row)
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
    return rows
