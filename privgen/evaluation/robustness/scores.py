"""From what was read to figures: rates of detection, and what they cost in quality.

Quality is scored as in WAVES (An et al., arXiv 2401.08573): each metric is scaled so that its 10 % and 90 % quantiles
over all attacked images are 0.1 and 0.9, 1 being worse, and the metrics are averaged. Here they are PSNR and SSIM;
WAVES has more.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privgen.evaluation.intervals import Measured, fraction, mean
from privgen.evaluation.robustness.log import Row
from privgen.evaluation.robustness.plan import Planned
from privgen.evaluation.watermark.readings import CLEAN, RATES, Bits, Weighed
from privgen.watermark.read.p_values import p_values_of


LEVELS = {"0_95": 0.95, "0_70": 0.70}
"""True-positive rates whose quality is told."""

MOST_DB = 60.0
"""A PSNR above it, as of images without a difference, counts as this when quality is scaled: rounding to 8 bits alone
has 58.9 dB."""


@dataclass(frozen=True)
class Scale:
    """What scales a metric; see the module.

    Attributes:
        low: its 10 % quantile over all attacked images.
        high: its 90 % quantile.
    """

    low: float
    high: float

    def __call__(self, values: ArrayLike) -> NDArray[np.float64]:
        x = np.asarray(values, np.float64)
        if self.high == self.low:
            return np.full_like(x, 0.5)
        return 0.1 + 0.8 * (x - self.low) / (self.high - self.low)


def fit_scale(values: ArrayLike) -> Scale:
    """The scale of a metric, larger being worse.

    Args:
        values: of all attacked images, at least one.
    """
    low, high = np.quantile(np.asarray(values, np.float64), (0.1, 0.9))
    return Scale(float(low), float(high))


@dataclass(frozen=True)
class LossScales:
    """Loss of quality, 0 for little and 1 for much; values outside are possible."""

    psnr: Scale
    ssim: Scale

    def __call__(self, rows: Sequence[Row]) -> NDArray[np.float64]:
        """One loss a row: (rows,)."""
        return (self.psnr(_psnr_loss(rows)) + self.ssim(_ssim_loss(rows))) / 2


def fit_losses(rows: Sequence[Row]) -> LossScales | None:
    """The scales over the attacked images among some rows; None if there are none."""
    chosen = [row for row in rows if row.attack != CLEAN]
    return LossScales(fit_scale(_psnr_loss(chosen)), fit_scale(_ssim_loss(chosen))) if chosen else None


def score(rows: Sequence[Row], messages: Bits, losses: LossScales | None) -> dict[str, Measured]:
    """Figures of one method under one attack.

    Args:
        rows: at least one; images by number.
        messages: (keys, n_bits), that of image i in row i; unmarked images, at least one, are compared with all, or
            with their own where they were searched for it.
        losses: None where no quality is lost, or told.

    Returns:
        Rates of detection at `RATES`, of marked images (`tpr_`) and of pairs of an unmarked one and a key (`fpr_`);
        `bit_accuracy`, `psnr_db` (of images that changed, without them not a number), `ssim`, `quality_loss`.
    """
    figures = {}
    for name, fpr in RATES.items():
        figures[f"tpr_{name}"] = fraction(detected(rows, messages, fpr))
        figures[f"fpr_{name}"] = fraction(falsely_detected(rows, messages, fpr))
    matches, n_bits = matches_of(rows, messages), messages.shape[1]
    figures["bit_accuracy"] = mean(matches / n_bits)
    changed = [row.psnr_db for row in rows if row.psnr_db is not None]
    figures["psnr_db"] = mean(changed) if changed else Measured(math.nan, 0, math.nan, math.nan)
    figures["ssim"] = mean([row.ssim for row in rows])
    return figures | ({"quality_loss": mean(losses(rows))} if losses else {})


def matches_of(rows: Sequence[Row], messages: Bits, name: str = "marked") -> NDArray[np.int64]:
    """(rows,) bits of marked images, or of "unmarked" ones, that agree with their own keys."""
    own = messages[[row.image for row in rows]]
    return ((_weighed(rows, name) > 0) == own).sum(axis=1)


def detected(rows: Sequence[Row], messages: Bits, fpr: float) -> NDArray[np.bool_]:
    """(rows,) whether the mark is found, corrected for the places where it was searched for."""
    return p_of(rows, messages) <= fpr


def p_of(rows: Sequence[Row], messages: Bits, name: str = "marked") -> NDArray[np.float64]:
    """(rows,) p-values of marked images, or of "unmarked" ones, for their own keys, corrected for the places."""
    places = [row.places if name == "marked" else row.unmarked_places for row in rows]
    own = messages[[row.image for row in rows]]
    p = [
        p_values_of([weighed], [message], "weighted")[0, 0]
        for weighed, message in zip(_weighed(rows, name), own, strict=True)
    ]
    return np.minimum(np.array(places) * np.array(p), 1)


def falsely_detected(rows: Sequence[Row], messages: Bits, fpr: float) -> NDArray[np.bool_]:
    """Whether a key is found in an unmarked image, for each pair that was compared: see `Row.unmarked_places`."""
    told = [row for row in rows if row.unmarked is not None]
    searched = [row for row in told if row.unmarked_places]
    if searched:
        return p_of(searched, messages, "unmarked") <= fpr
    return (p_values_of(_weighed(told, "unmarked"), messages, "weighted") <= fpr).ravel()


def mean_detected(rows: Sequence[Row], attacks: Sequence[str], messages: Bits, fpr: float) -> dict[int, float]:
    """By image the share of some attacks that its mark is found after; images that miss one are left out."""
    found: dict[int, list[bool]] = {}
    chosen = [row for row in rows if row.attack in attacks]
    for row, hit in zip(chosen, detected(chosen, messages, fpr) if chosen else (), strict=True):
        found.setdefault(row.image, []).append(bool(hit))
    return {image: sum(hits) / len(hits) for image, hits in sorted(found.items()) if len(hits) == len(attacks)}


@dataclass(frozen=True)
class Crossing:
    """Where a curve falls below a level.

    Attributes:
        quality_loss: there, by linear interpolation; None where it does not fall on the curve.
        state: "reached"; "not reached", when the rate stays at the level or above; "below from the start", when it is
            lower at the mildest strength already.
    """

    quality_loss: float | None
    state: str


def crossing(points: Sequence[tuple[float, float]], level: float) -> Crossing:
    """The loss of quality at which the rate of detection falls below a level.

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
    """Performance against quality: one attack at rising strengths, on one method.

    Attributes:
        strengths: of the attack.
        losses: mean loss of quality.
        rates: true-positive rate at 1e-3.
    """

    strengths: tuple[float, ...]
    losses: tuple[float, ...]
    rates: tuple[float, ...]

    def crossings(self) -> dict[str, Crossing]:
        """By name of `LEVELS`."""
        points = list(zip(self.losses, self.rates, strict=True))
        return {name: crossing(points, level) for name, level in LEVELS.items()}


def curves_of(planned: Sequence[Planned], scores: Mapping[str, Mapping[str, Measured] | None]) -> dict[str, Curve]:
    """A method's curves by name of the attack.

    Args:
        planned: the attacks.
        scores: by key; None for one that could not be run.
    """
    points: dict[str, list[tuple[float, float, float]]] = {}
    for entry in planned:
        figures = scores.get(entry.key)
        if figures is not None:
            point = (entry.strength, figures["quality_loss"].value, figures["tpr_1e-3"].value)
            points.setdefault(entry.name, []).append(point)
    return {name: Curve(*map(tuple, zip(*found, strict=True))) for name, found in points.items()}


def _weighed(rows: Sequence[Row], name: str) -> Weighed:
    return np.array([getattr(row, name) for row in rows], np.int8)


def _psnr_loss(rows: Sequence[Row]) -> list[float]:
    return [-min(MOST_DB if row.psnr_db is None else row.psnr_db, MOST_DB) for row in rows]


def _ssim_loss(rows: Sequence[Row]) -> list[float]:
    return [1 - row.ssim for row in rows]
