"""From rows to figures: how often one method's marks are found, and what attacks do to its images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from privgen.evaluation.intervals import Measured, fraction, mean, median
from privgen.evaluation.robustness.curves import LossScales
from privgen.evaluation.robustness.log import Row
from privgen.evaluation.watermark.readings import RATES, Bits
from privgen.watermark.read.p_values import p_values_of


def score(rows: Sequence[Row], messages: Bits, losses: LossScales | None) -> dict[str, Measured]:
    """Figures of one method under one attack.

    Args:
        rows: at least one; at least one of them holds a reading of the unmarked image.
        messages: (keys, n_bits); row i is the message of image i.
        losses: scales of the loss of quality; None leaves it out.

    Returns:
        Rates of detection at `RATES`: `tpr_...` of marked images, and `fpr_...` of pairs of an unmarked image and a
        key, see `falsely_detected`. `bit_accuracy`; `psnr_db` over the images that changed, and `ssim`, which are not
        numbers if no image has them. `quality_loss`.
    """
    figures = {}
    for name, fpr in RATES.items():
        figures[f"tpr_{name}"] = fraction(marked_p_values(rows, messages) <= fpr)
        figures[f"fpr_{name}"] = fraction(falsely_detected(rows, messages, fpr))
    figures["bit_accuracy"] = mean(matches_of(rows, messages) / messages.shape[1])
    figures["psnr_db"] = _mean_of_known([row.psnr_db for row in rows])
    figures["ssim"] = _mean_of_known([row.ssim for row in rows])
    return figures | ({"quality_loss": mean(losses(rows))} if losses else {})


def visibility(rows: Sequence[Row]) -> dict[str, Measured]:
    """How visible marks are, over the rows without an attack that say it.

    Returns:
        `visible_de_p99`, the median over the images, and `visible_de_mean`, the mean over them; empty if no row has
        them.
    """
    highest = [row.visible_de_p99 for row in rows if row.visible_de_p99 is not None]
    means = [row.visible_de_mean for row in rows if row.visible_de_mean is not None]
    return {"visible_de_p99": median(highest), "visible_de_mean": mean(means)} if highest else {}


def matches_of(rows: Sequence[Row], messages: Bits) -> NDArray[np.int64]:
    """(rows,) bits of the marked images that agree with their own keys."""
    own = messages[[row.image for row in rows]]
    return ((np.array([row.marked for row in rows]) > 0) == own).sum(axis=1)


def marked_p_values(rows: Sequence[Row], messages: Bits) -> NDArray[np.float64]:
    """(rows,) p-values of the marked images for their own keys, corrected for the search."""
    return np.array([_corrected(row.p_value, row.marked, messages[row.image], row.places) for row in rows])


def falsely_detected(rows: Sequence[Row], messages: Bits, fpr: float) -> NDArray[np.bool_]:
    """Whether a key is found in an unmarked image, for each pair of the two that was compared.

    Images that were searched are compared with their own key alone; the others with all keys.

    Args:
        rows: those without a reading of the unmarked image are passed over.
        messages: (keys, n_bits); row i is the message of image i.
        fpr: false-positive rate.

    Returns:
        (pairs,).
    """
    told = [(row, row.unmarked) for row in rows if row.unmarked is not None]
    if any(row.unmarked_places for row, _ in told):
        searched = [(row, read) for row, read in told if row.unmarked_places]
        p = [
            _corrected(row.unmarked_p_value, read, messages[row.image], row.unmarked_places) for row, read in searched
        ]
        return np.array(p) <= fpr
    return (p_values_of(np.array([read for _, read in told]), messages, "weighted") <= fpr).ravel()


def mean_detected(rows: Sequence[Row], attacks: Sequence[str], messages: Bits, fpr: float) -> dict[int, float]:
    """The fraction of some attacks after which an image's mark is found, by number of the image.

    Args:
        rows: of one method.
        attacks: keys of the attacks; an image that lacks one of them is left out.
        messages: (keys, n_bits); row i is the message of image i.
        fpr: false-positive rate.
    """
    found: dict[int, list[bool]] = {}
    chosen = [row for row in rows if row.attack in attacks]
    for row, p in zip(chosen, marked_p_values(chosen, messages), strict=True):
        found.setdefault(row.image, []).append(bool(p <= fpr))
    return {image: sum(hits) / len(hits) for image, hits in sorted(found.items()) if len(hits) == len(attacks)}


def _mean_of_known(values: Sequence[float | None]) -> Measured:
    known = [value for value in values if value is not None]
    return mean(known) if known else Measured(math.nan, 0, math.nan, math.nan)


def _corrected(known: float | None, read: Sequence[int], message: NDArray[np.uint8], places: int) -> float:
    """The p-value of one image for one key: the reader's own, or that of the bits times the places (Bonferroni)."""
    if known is not None:
        return known
    return min(places * float(p_values_of([read], [message], "weighted")[0, 0]), 1.0)
