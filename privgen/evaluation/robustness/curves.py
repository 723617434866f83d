"""What attacks cost in quality, and how detection falls as that cost rises.

Quality is scored as in WAVES (An et al., arXiv 2401.08573): each metric is scaled so that its 10 % and 90 % quantiles
over all attacked images become 0.1 and 0.9, 1 being worse, and the metrics are averaged. Here the metrics are PSNR and
SSIM; WAVES has more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privgen.evaluation.intervals import Measured
from privgen.evaluation.robustness.log import Row
from privgen.evaluation.robustness.plan import Planned
from privgen.evaluation.watermark.readings import CLEAN


LEVELS = {"0_95": 0.95, "0_70": 0.70}
"""True-positive rates for which results say at what loss of quality an attack reaches them."""

MOST_DB = 60.0
"""Higher PSNRs, such as that of an unchanged image, count as 60 dB when quality is scaled. Rounding to 8 bits alone
gives 58.9 dB."""


@dataclass(frozen=True)
class Scale:
    """Scales a metric as WAVES does.

    Attributes:
        low: its 10 % quantile over all attacked images, which becomes 0.1.
        high: its 90 % quantile, which becomes 0.9.
    """

    low: float
    high: float

    def __call__(self, values: ArrayLike) -> NDArray[np.float64]:
        x = np.asarray(values, np.float64)
        if self.high == self.low:
            return np.full_like(x, 0.5)
        return 0.1 + 0.8 * (x - self.low) / (self.high - self.low)


def fit_scale(values: ArrayLike) -> Scale:
    """The scale of a metric whose larger values are worse.

    Args:
        values: of all attacked images, at least one.
    """
    low, high = np.quantile(np.asarray(values, np.float64), (0.1, 0.9))
    return Scale(float(low), float(high))


@dataclass(frozen=True)
class LossScales:
    """Loss of quality: near 0 for little and near 1 for much, and beyond both for outliers."""

    psnr: Scale
    ssim: Scale

    def __call__(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """The loss of each row: (rows,)."""
        return (self.psnr(_psnr_loss(rows)) + self.ssim(_ssim_loss(rows))) / 2


def fit_losses(rows: Sequence[Row]) -> LossScales | None:
    """The scales over the attacked images among some rows; None if there are none."""
    chosen = [row for row in rows if row.attack != CLEAN]
    return LossScales(fit_scale(_psnr_loss(chosen)), fit_scale(_ssim_loss(chosen))) if chosen else None


@dataclass(frozen=True)
class Crossing:
    """Where a curve falls below a level.

    Attributes:
        quality_loss: the loss of quality there, by linear interpolation; None if the curve does not cross the level.
        state: "reached"; "not reached", when the rate stays at the level or above; or "below from the start", when it
            is lower at the mildest strength already.
    """

    quality_loss: float | None
    state: str


def crossing(points: Sequence[tuple[float, float]], level: float) -> Crossing:
    """The loss of quality at which the rate of detection falls below a level for the first time.

    Args:
        points: (loss of quality, rate), in any order, at least one.
        level: in (0, 1).
    """
    ordered = sorted(points)
    if ordered[0][1] < level:
        return Crossing(None, "below from the start")
    for (x_0, y_0), (x_1, y_1) in pairwise(ordered):
        if y_1 < level <= y_0:
            return Crossing(x_0 + (x_1 - x_0) * (y_0 - level) / (y_0 - y_1), "reached")
    return Crossing(None, "not reached")


@dataclass(frozen=True)
class Curve:
    """Detection against quality: one method under one attack, from mild to hard strengths.

    Attributes:
        strengths: of the attack, in its own unit.
        losses: mean loss of quality at each strength.
        rates: true-positive rate at 1e-3 at each strength.
    """

    strengths: tuple[float, ...]
    losses: tuple[float, ...]
    rates: tuple[float, ...]

    def crossings(self) -> dict[str, Crossing]:
        """Where the curve falls below each of `LEVELS`, by name of the level."""
        points = list(zip(self.losses, self.rates, strict=True))
        return {name: crossing(points, level) for name, level in LEVELS.items()}


def curves_of(planned: Sequence[Planned], scores: Mapping[str, Mapping[str, Measured] | None]) -> dict[str, Curve]:
    """A method's curves by name of the attack.

    Args:
        planned: the attacks, mild strengths first.
        scores: figures by key of the attack, as `privgen.evaluation.robustness.scores.score` returns them; None for an
            attack that could not be run.
    """
    points: dict[str, list[tuple[float, float, float]]] = {}
    for entry in planned:
        figures = scores.get(entry.key)
        if figures is not None:
            point = (entry.strength, figures["quality_loss"].value, figures["tpr_1e-3"].value)
            points.setdefault(entry.name, []).append(point)
    return {name: Curve(*map(tuple, zip(*found, strict=True))) for name, found in points.items()}


def _psnr_loss(rows: Sequence[Row]) -> list[float]:
    return [-min(MOST_DB if row.psnr_db is None else row.psnr_db, MOST_DB) for row in rows]


def _ssim_loss(rows: Sequence[Row]) -> list[float]:
    return [1.0 if row.ssim is None else 1 - row.ssim for row in rows]
