"""The report of a robustness evaluation on photographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from privgen.environment import Environment
from privgen.evaluation.intervals import Measured, ci95, values
from privgen.evaluation.record import Report
from privgen.evaluation.robustness.photographs.contestants import NAME
from privgen.evaluation.robustness.plan import Planned
from privgen.evaluation.robustness.report import Lead, MethodScores
from privgen.evaluation.watermark.readings import RATES


NOTE = (
    "Photographs are marked, attacked and read at their own sizes. tpr is the fraction of marked photographs in which "
    "the key is found; false_positives is the same fraction of unmarked photographs, each with its own key, over all "
    "attacks and without one. Our marks are read without knowing the size they were marked at. Baselines read a "
    "photograph whose size an attack changed twice, as it is and resized to the size it was marked at; the better "
    "reading counts, with twice its p-value. psnr_db, ssim and st_lpips of an attack compare the attacked marked "
    "photograph with the marked one, where both have one size; at the top and under clean they, visible_de_p99 and "
    "visible_de_mean compare the marked photograph with the unmarked one."
)
"""Goes into every record, and onto the page."""

_QUALITIES = ("psnr_db", "visible_de_p99", "visible_de_mean", "ssim", "st_lpips")
_MEANS = ("mean_tpr_1e-3", "mean_tpr_1e-6")
_SECONDS = ("seconds_embed", "seconds_detect", "seconds_search")


@dataclass(frozen=True)
class PhotographsEvaluation(Report):
    """How well marks of photographs survive attacks.

    Attributes:
        settings: model, folder, numbers of images, seed, and how images were marked and read.
        methods: scores of each method, ours first.
        false_positives: by method and name of the rate: the fraction of unmarked photographs, over all attacks and
            without one, in which the detector finds the key.
        planned: the attacks.
        left_out: by name of each baseline that was not measured, why.
        lead: over all attacks at 1e-6; None without baselines.
        seconds: that a large photograph takes; empty if it was not measured.
        notes: what you should know about this run.
        environment: versions.
        command: the command that makes the same results.
        pages: the HTML page; see `privgen.evaluation.robustness.photographs.page`.
    """

    settings: Mapping[str, Any]
    methods: Sequence[MethodScores]
    false_positives: Mapping[str, Mapping[str, Measured]]
    planned: Sequence[Planned]
    left_out: Mapping[str, str]
    lead: Lead | None
    seconds: Mapping[str, float]
    notes: Sequence[str]
    environment: Environment
    command: str
    pages: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)

    def figures(self) -> dict[str, Any]:
        """All numbers by name; what was not measured is None."""
        records = {method.name: self._of_method(method) for method in self.methods}
        own = records.pop(NAME, {})
        names = (*_QUALITIES, *_MEANS, "n_bits", "clean", "attacks", "false_positives")
        lead = {"lead_over_best_baseline": self.lead.tpr, "psnr_lead_db": self.lead.psnr_db} if self.lead else {}
        return {
            **self.settings,
            **{name: own.get(name) for name in names},
            "lead_over_best_baseline": None,
            "psnr_lead_db": None,
            **values(lead),
            "best_baseline": self.lead.baseline if self.lead else None,
            **{name: self.seconds.get(name) for name in _SECONDS},
            "mean_over": [entry.key for entry in self.planned if entry.middle],
            "baselines": {**records, **dict.fromkeys(self.left_out)},
            "not_run": {entry.key: entry.reason for entry in self.planned if entry.reason},
            "left_out": dict(self.left_out),
            "notes": list(self.notes),
            "note": NOTE,
            "command": self.command,
            "ci95": {**own.get("ci95", {}), **ci95(lead)},
        }

    def summary(self) -> dict[str, Any]:
        """The most important numbers, for people to read."""
        record = self.record()
        names = ("psnr_db", "visible_de_p99", *_MEANS, "lead_over_best_baseline", "best_baseline", "psnr_lead_db")
        baselines = {
            name: None if row is None else {key: row[key] for key in ("n", "psnr_db", "visible_de_p99", *_MEANS)}
            for name, row in record["baselines"].items()
        }
        return {
            **self.settings,
            **{name: record[name] for name in (*names, *_SECONDS)},
            "false_positives": {name: values(found) for name, found in self.false_positives.items()},
            "baselines": baselines,
            "not_run": record["not_run"],
            "notes": record["notes"],
        }

    def table(self) -> list[dict[str, Any]]:
        """Attacks by methods: the rates at 1e-3 and 1e-6."""
        rows = []
        for entry in self.planned:
            row: dict[str, Any] = {"attack": entry.key}
            for method in self.methods:
                figures = method.attacks.get(entry.key)
                both = "-" if figures is None else " / ".join(f"{figures[f'tpr_{rate}'].value:.2f}" for rate in RATES)
                row[method.name] = both
            rows.append(row)
        return rows

    def _of_method(self, method: MethodScores) -> dict[str, Any]:
        record = method.record()
        del record["curves"]  # attacks come at one strength each
        quality = {name: method.clean[name] for name in _QUALITIES if name in method.clean}
        found = self.false_positives[method.name]
        return {
            **dict.fromkeys(_QUALITIES),
            **values(quality),
            **record,
            "false_positives": {"n": next(iter(found.values())).n, **values(found), "ci95": ci95(found)},
            "ci95": {**record["ci95"], **ci95(quality)},
        }
