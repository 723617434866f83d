"""What was read from each image, in a journal that a later run of the same work takes up."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from privgen.io.fingerprints import settings_fingerprint
from privgen.io.journal import Journal


LOG = "robustness.jsonl"
"""The lines of the first process; those of process 1 are in `robustness-1.jsonl`, and so on."""


@dataclass(frozen=True)
class Row:
    """One image under one attack, as one method reads it.

    Attributes:
        method: name of the method.
        attack: key of the attack; "clean" is without one.
        image: number of the image.
        marked: weighed bits that were read from the marked image, as `privgen.watermark.read.bits.weigh_bits` returns
            them.
        unmarked: the same from the image without a mark, after the same attack with the same random draws; None if it
            was not read.
        psnr_db: of the attacked marked image against the marked one; without an attack, of the marked image against
            the unmarked one. None is infinite, or unknown because the attack changed the size.
        ssim: of the same images; None if the attack changed the size.
        places: factor by which the search for the mark multiplies the p-value of `marked`; 1 without a search.
        unmarked_places: the same for `unmarked`, which was then searched for the key of its own image; 0 if it was not
            searched, and is compared with all keys.
        st_lpips: of the same images as `psnr_db`; None if ST-LPIPS is not installed.
        features: of the attacked marked image, as `privgen.evaluation.robustness.perception` writes them; None if no
            Frechet distance is computed, or its network is not installed.
        p_value: of the key in the marked image, as the reader itself corrects it for its search; None if it follows
            from `marked` and `places`.
        unmarked_p_value: the same for `unmarked`.
        visible_de_p99: without an attack, `privgen.metrics.visible_difference` of the marked image against the
            unmarked one: its 99th percentile over the pixels.
        visible_de_mean: the mean of the same.
    """

    method: str
    attack: str
    image: int
    marked: list[int]
    unmarked: list[int] | None
    psnr_db: float | None
    ssim: float | None
    places: int = 1
    unmarked_places: int = 0
    st_lpips: float | None = None
    features: str | None = None
    p_value: float | None = None
    unmarked_p_value: float | None = None
    visible_de_p99: float | None = None
    visible_de_mean: float | None = None


class Log:
    """Rows by method, attack and image.

    Args:
        folder: where the files are; None keeps none.
        works: for each (method, attack) all that its rows depend on; lines of other work are passed over.
        rank: number of this process, which writes a file of its own.
        images: what identifies each image, by its number; empty if `works` says it for all images.

    Raises:
        PrivgenError: a file cannot be read.
    """

    def __init__(
        self,
        folder: Path | None,
        works: Mapping[tuple[str, str], str],
        rank: int = 0,
        images: Sequence[str] = (),
    ) -> None:
        self.works, self.images = works, images
        self._journal = Journal.of_process(folder, LOG, rank)
        self._rows: dict[tuple[str, str, int], Row] = {}
        self._keep(self._journal.read(self._row))

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
        self._journal.append({"work": self._work(row), **asdict(row)} for row in rows)

    def _keep(self, rows: Iterable[Row]) -> None:
        self._rows |= {(row.method, row.attack, row.image): row for row in rows}

    def _row(self, record: dict[str, Any]) -> Row:
        work = record.pop("work")
        row = Row(**record)
        if self._work(row) != work or not isinstance(row.marked, list):
            raise ValueError("expected a row of this work")
        return row

    def _work(self, row: Row) -> str:
        """All that a row depends on. Raises KeyError or IndexError for a row of other work."""
        work = self.works[row.method, row.attack]
        return f"{work}-{self.images[row.image]}" if self.images else work


def work_id(*parts: str) -> str:
    """Return 16 hexadecimal digits that stand for all that a row depends on."""
    return settings_fingerprint(*parts)[:16]


def finite_or_none(value: float) -> float | None:
    """A number that JSON has, or None."""
    return value if math.isfinite(value) else None
