"""The report of a watermark evaluation: rates of detection, quality, and how unmarked images read."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from privgen.environment import Environment
from privgen.evaluation.intervals import Measured, ci95, fraction, mean, median, values
from privgen.evaluation.record import Report
from privgen.evaluation.watermark.calibration import calibrate, tails
from privgen.evaluation.watermark.marking import MarkedImages
from privgen.evaluation.watermark.negatives import Negatives
from privgen.evaluation.watermark.readings import ATTACKS, CLEAN, RATES, Bits
from privgen.watermark.read.bits import count_matches
from privgen.watermark.write.mark_spec import NETWORK_CARRIERS, NetworkCarrier


FILES = (*(f"{carrier}{kind}.png" for carrier in NETWORK_CARRIERS for kind in ("", "-photos")), "negatives.png")
"""Pictures that `WatermarkEvaluation.save` may write."""

NOTE = (
    "Every unmarked image is compared with the same keys. Training photographs, which the extractor may have seen "
    "without a mark, count as negatives only; marks are measured on held-out photographs."
)
"""Goes into every record."""

_HEADLINES = (
    *("bit_accuracy", "tpr_1e-3", "tpr_1e-6", "psnr_db", "ssim", "time_ratio", "trainable_parameters"),
    *ATTACKS,
)


@dataclass(frozen=True)
class CarrierScores:
    """How well one carrier's marks are found, and what they cost.

    Attributes:
        trainable_parameters: of the network that makes a mark from a message.
        n: generated images.
        unchanged: how many of them the mark did not change; their PSNR is infinite and left out of the mean.
        measures: on generated images.
        photos_n: photographs.
        photos: measures on photographs; empty if there were none.
    """

    trainable_parameters: int
    n: int
    unchanged: int
    measures: Mapping[str, Measured]
    photos_n: int
    photos: Mapping[str, Measured]

    def record(self) -> dict[str, Any]:
        """The numbers as a mapping, photographs and intervals nested in it."""
        counts = {name: getattr(self, name) for name in ("n", "unchanged", "trainable_parameters")}
        photos = {"n": self.photos_n, **values(self.photos), "ci95": ci95(self.photos)} if self.photos else None
        return {**counts, **values(self.measures), "photos": photos, "ci95": ci95(self.measures)}


@dataclass(frozen=True)
class WatermarkEvaluation(Report):
    """How well marks are found, and how often they are found where none is.

    Attributes:
        settings: model, n (pairs of a marked and an unmarked image for each carrier), seed, and how images were
            generated and marked.
        carrier: the one whose figures are the headlines: the model's default if it was measured; None if none was.
        carriers: scores by carrier; None for one that was not asked for or that the model lacks.
        negatives: counts of unmarked images.
        unmarked: what was measured on them; see `unmarked_scores`.
        fpr_clean: fraction of pairs of an unmarked image and a key that are detected at 1e-6.
        environment: versions.
        pictures: by name.
    """

    settings: Mapping[str, Any]
    carrier: NetworkCarrier | None
    carriers: Mapping[NetworkCarrier, CarrierScores | None]
    negatives: Mapping[str, int]
    unmarked: Mapping[str, Any] = field(repr=False)
    fpr_clean: Measured
    environment: Environment
    pictures: Mapping[str, Image.Image] = field(repr=False, compare=False)

    def figures(self) -> dict[str, Any]:
        """All numbers by name; what was not measured is None."""
        carriers = {name: scores.record() if scores else None for name, scores in self.carriers.items()}
        chosen: dict[str, Any] = (carriers[self.carrier] if self.carrier else None) or {"photos": None, "ci95": {}}
        return {
            **self.settings,
            "carrier": self.carrier,
            **dict.fromkeys(_HEADLINES),
            **{name: value for name, value in chosen.items() if name not in ("n", "ci95")},
            "fpr_clean": self.fpr_clean.value,
            **self.negatives,
            "negatives_note": NOTE,
            "carriers": carriers,
            "unmarked": self.unmarked,
            "ci95": {**chosen["ci95"], **ci95({"fpr_clean": self.fpr_clean})},
        }

    def summary(self) -> dict[str, Any]:
        """The record without intervals, versions and calibration, for people to read."""
        summary: dict[str, Any] = _without(self.record(), ("ci95", "environment", "unmarked"))
        return summary


def marked_scores(marked: MarkedImages) -> dict[str, Measured]:
    """How well marked images are read, clean and after each attack, and what the mark costs.

    Args:
        marked: at least one image.

    Returns:
        By name: bit accuracies and rates of detection at `RATES`; `psnr_db` over the images that changed, and `ssim`;
        and `time_ratio` where times were taken.
    """
    n_bits = marked.messages.shape[1]
    measures = {}
    for attack in marked.readings:
        p, prefix = marked.p_values(attack), "" if attack == CLEAN else f"{attack}_"
        measures["bit_accuracy" if attack == CLEAN else attack] = mean(marked.matches(attack) / n_bits)
        for name, fpr in RATES.items():
            measures[f"{prefix}tpr_{name}"] = fraction(p <= fpr)
    changed = marked.psnr_db[np.isfinite(marked.psnr_db)]
    measures["psnr_db"] = mean(changed) if changed.size else Measured(math.nan, 0, math.nan, math.nan)
    measures["ssim"] = mean(marked.ssim)
    return measures | ({"time_ratio": median(marked.time_ratios)} if marked.time_ratios else {})


def unmarked_scores(negatives: Negatives, messages: Bits) -> dict[str, Any]:
    """How images without a mark are read.

    Args:
        negatives: what was read.
        messages: (keys, n_bits), the bits of the keys that every image is compared with.

    Returns:
        The figures of `calibrate`: on all images by attack, and without an attack by kind of image. Under `curve` the
        two tails of `tails`, for each number of matches.
    """
    scores: dict[str, Any] = {name: calibrate(read, messages) for name, read in negatives.all.items()}
    scores["generated"] = calibrate(negatives.generated[CLEAN], messages)
    scores["photographs"] = calibrate(negatives.photographs[CLEAN], messages)
    n_bits = messages.shape[1]
    measured, binomial = tails(count_matches(negatives.all[CLEAN] > 0, messages), n_bits)
    curve = {"matches": list(range(n_bits + 1)), "measured": measured.tolist(), "binomial": binomial.tolist()}
    return {**scores, "curve": curve}


def _without(value: Any, names: Sequence[str]) -> Any:
    """A nested mapping without some of its entries."""
    if isinstance(value, Mapping):
        return {name: _without(item, names) for name, item in value.items() if name not in names}
    return value
