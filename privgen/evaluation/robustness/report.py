"""The results of a robustness evaluation: as a record, and as files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from privgen.environment import Environment
from privgen.evaluation.intervals import Measured, ci95, values
from privgen.evaluation.record import Report
from privgen.evaluation.robustness.curves import Curve
from privgen.evaluation.robustness.plan import Planned


PAGE = "robustness.html"

NOTE = (
    "tpr: share of marked images in which the weighted test finds the key. fpr: "
    "the same of pairs of an unmarked image, under the same attack, and any of the keys; its interval counts pairs as "
    "independent, and they share images and keys. psnr_db and ssim compare the attacked marked image with the marked "
    "one; under clean, the marked image with the unmarked one. quality_loss: WAVES' scaling of both. st_lpips (not "
    "LPIPS) and fd_mnv2 (Frechet distance by MobileNetV2, not FID) compare the same and are there where installed."
)


@dataclass(frozen=True)
class MethodScores:
    """How well one method's marks survive.

    Attributes:
        name: of the method.
        baseline: whether it is another package's.
        n_bits: bits of a message.
        n: images.
        clean: figures without an attack; `psnr_db` and `ssim` are those of marking.
        attacks: figures by key of the attack; None where it could not be run.
        means: `mean_tpr_1e-3` and `mean_tpr_1e-6`, over distortions at their middle strength; empty where none was
            run.
        curves: by name of the attack.
    """

    name: str
    baseline: bool
    n_bits: int
    n: int
    clean: Mapping[str, Measured]
    attacks: Mapping[str, Mapping[str, Measured] | None]
    means: Mapping[str, Measured]
    curves: Mapping[str, Curve]

    def record(self) -> dict[str, Any]:
        """The numbers as a mapping."""
        means = {"mean_tpr_1e-3": None, "mean_tpr_1e-6": None, **values(self.means)}
        return {
            "n_bits": self.n_bits,
            "n": self.n,
            **means,
            "clean": _figures(self.clean),
            "attacks": {key: None if figures is None else _figures(figures) for key, figures in self.attacks.items()},
            "curves": {name: _curve(curve) for name, curve in self.curves.items()},
            "ci95": ci95(self.means),
        }


@dataclass(frozen=True)
class Lead:
    """One method before the best of its baselines, on the images that both were measured on.

    Attributes:
        baseline: the one with the largest mean rate.
        tpr: difference of the mean rates at 1e-3.
        psnr_db: difference of the PSNR of marking; positive where ours changes less.
    """

    baseline: str
    tpr: Measured
    psnr_db: Measured


@dataclass(frozen=True)
class RobustnessEvaluation(Report):
    """What was measured.

    Attributes:
        settings: model, preset, n, seed and how images were generated.
        carrier: the method whose figures are the headlines; None if only baselines were measured.
        methods: in order, ours first.
        planned: the attacks.
        left_out: why methods of the comparison were not measured, by name.
        lead: None without baselines, or without distortions.
        environment: versions.
        command: that makes the same results.
        pages: the HTML page; see `privgen.evaluation.robustness.page`.
    """

    settings: Mapping[str, Any]
    carrier: str | None
    methods: Sequence[MethodScores]
    planned: Sequence[Planned]
    left_out: Mapping[str, str]
    lead: Lead | None
    environment: Environment
    command: str
    pages: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def figures(self) -> dict[str, Any]:
        """All numbers by name; what was not measured is None."""
        own = {method.name: method.record() for method in self.methods if not method.baseline}
        empty: dict[str, Any] = {**dict.fromkeys(("mean_tpr_1e-3", "mean_tpr_1e-6", "clean")), "attacks": {}}
        headline = own[self.carrier] if self.carrier else empty
        missing = dict.fromkeys(self.left_out)
        lead = {"lead_over_best_baseline": self.lead.tpr, "psnr_lead_db": self.lead.psnr_db} if self.lead else {}
        baselines = {method.name: method.record() for method in self.methods if method.baseline}
        return {
            **self.settings,
            "carrier": self.carrier,
            **{name: value for name, value in headline.items() if name not in ("n", "ci95")},
            "mean_over": [entry.key for entry in self.planned if entry.middle],
            "lead_over_best_baseline": None,
            "psnr_lead_db": None,
            **values(lead),
            "best_baseline": self.lead.baseline if self.lead else None,
            "carriers": own,
            "baselines": {**baselines, **missing},
            "not_run": {entry.key: entry.reason for entry in self.planned if entry.reason},
            "left_out": dict(self.left_out),
            "note": NOTE,
            "command": self.command,
            "ci95": {**headline.get("ci95", {}), **ci95(lead)},
        }

    def summary(self) -> dict[str, Any]:
        """The most important numbers, for people."""
        record = self.record()
        names = ("mean_tpr_1e-3", "mean_tpr_1e-6")
        rates = {key: None if row is None else row["tpr_1e-3"] for key, row in record["attacks"].items()}
        baselines = {
            name: None if row is None else {"n_bits": row["n_bits"], **{key: row[key] for key in names}}
            for name, row in record["baselines"].items()
        }
        return {
            **self.settings,
            "carrier": self.carrier,
            **{name: record[name] for name in (*names, "lead_over_best_baseline", "best_baseline", "psnr_lead_db")},
            "tpr_1e-3": rates,
            "baselines": baselines,
            "not_run": record["not_run"],
        }


def _figures(figures: Mapping[str, Measured]) -> dict[str, Any]:
    return {"n": figures["bit_accuracy"].n, **values(figures), "ci95": ci95(figures)}


def _curve(curve: Curve) -> dict[str, Any]:
    levels = {f"quality_at_tpr_{name}": asdict(found) for name, found in curve.crossings().items()}
    return {
        "strength": list(curve.strengths),
        "quality_loss": list(curve.losses),
        "tpr_1e-3": list(curve.rates),
        **levels,
    }
