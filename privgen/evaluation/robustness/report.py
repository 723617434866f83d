"""The report of a robustness evaluation."""

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
"""Name of the file of the page."""

NOTE = (
    "tpr is the fraction of marked images in which the weighted test finds the key. fpr is the same fraction of pairs "
    "of a key and an unmarked image after the same attack; its interval counts pairs as independent, although they "
    "share images and keys. psnr_db and ssim compare the attacked marked image with the marked one; under clean, the "
    "marked image with the unmarked one. quality_loss scales both as WAVES does. st_lpips (not LPIPS) and fd_mnv2 "
    "(Frechet distance by MobileNetV2, not FID) compare the same images, where their networks are installed."
)
"""Goes into every record, and onto the page."""


@dataclass(frozen=True)
class MethodScores:
    """How well one method's marks survive.

    Attributes:
        name: of the method.
        baseline: whether it comes from another package.
        n_bits: bits of a message.
        n: images.
        clean: figures without an attack; `psnr_db` and `ssim` say what marking costs.
        attacks: figures by key of the attack; None for an attack that could not be run.
        means: `mean_tpr_1e-3` and `mean_tpr_1e-6` over distortions at their middle strength; empty if none was run.
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
        """All numbers by name."""
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
    """How far our first method is ahead of the best baseline, on the images that both were measured on.

    Attributes:
        baseline: the one with the largest mean rate.
        tpr: our mean rate less the baseline's.
        psnr_db: our PSNR of marking less the baseline's; positive where our mark changes images less.
    """

    baseline: str
    tpr: Measured
    psnr_db: Measured


@dataclass(frozen=True)
class RobustnessEvaluation(Report):
    """How well marks survive attacks.

    Attributes:
        settings: model, preset, numbers of images, seed, and how images were generated, marked and read.
        carrier: the method whose figures are the headlines; None if only baselines were measured.
        methods: scores of each method, ours first.
        planned: the attacks.
        left_out: by name of each baseline that was not measured, why.
        lead: None without baselines, or without distortions.
        environment: versions.
        command: the command that makes the same results.
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
        """The most important numbers, for people to read."""
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
