"""The report of `evaluate training`: figures over the seeds, the record, charts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from PIL import Image

from privgen.environment import Environment, environment
from privgen.evaluation.intervals import Measured, over_seeds
from privgen.evaluation.noise_assignment.data import TrainingData
from privgen.evaluation.noise_assignment.pictures import draw_curves
from privgen.evaluation.noise_assignment.ratio import is_speedup, is_worse, ratio_over_seeds, steps_ratio
from privgen.evaluation.noise_assignment.runs import Checkpoint
from privgen.evaluation.noise_assignment.settings import SETTINGS, VANILLA, RunOptions, auto_method
from privgen.evaluation.record import Report


Curves = dict[str, dict[str, list[list[Checkpoint]]]]
"""Checkpoints by setting, method and seed."""


@dataclass(frozen=True)
class TrainingEvaluation(Report):
    """The results of an evaluation.

    Attributes:
        options: how long and how fast every model learned.
        seeds: runs of each method.
        networks: by data, the name of the network whose features are compared.
        real: by data, the quality of as many real training samples, which no model can be expected to surpass.
        settings: for each setting and number of sampling steps, such as "fashion-flow euler-5":

            - "auto": the name of the method that `assign_noise` chooses by itself.
            - "vanilla": its final figures.
            - "methods": for each other method "steps_ratio" (vanilla's steps over the method's, to vanilla's final
              quality), "seconds_ratio" (the same in time) and its final figures.
        curves: checkpoints by setting, method and seed.
        environment: versions and devices.
        pictures: charts by name.
    """

    options: RunOptions
    seeds: int
    networks: dict[str, str]
    real: dict[str, dict[str, float]]
    settings: dict[str, dict[str, Any]]
    curves: Curves = field(repr=False)
    environment: Environment
    pictures: dict[str, Image.Image] = field(repr=False, compare=False)

    @property
    def with_speedup(self) -> list[str]:
        """The settings in which a method is at least 1.3 times faster, with an interval above 1."""
        return [name for name in self.settings if any(is_speedup(r) for r in self._ratios(name).values())]

    @property
    def auto_never_worse(self) -> int | None:
        """1 if the method that "auto" chooses is worse in no setting, else 0; None if that was not measured."""
        autos = [self._ratios(name).get(row["auto"]) for name, row in self.settings.items()]
        measured = [ratio for ratio in autos if ratio is not None and math.isfinite(ratio.high)]
        return int(not any(is_worse(ratio) for ratio in measured)) if len(measured) == len(autos) > 0 else None

    def _ratios(self, setting: str) -> dict[str, Measured]:
        return {name: row["steps_ratio"] for name, row in self.settings[setting]["methods"].items()}

    def figures(self) -> dict[str, Any]:
        by_auto = []
        for name, row in self.settings.items():
            ratio = self._ratios(name).get(row["auto"])
            if ratio is not None and is_speedup(ratio):
                by_auto.append(name)
        return {
            "seeds": self.seeds,
            "settings_with_speedup_1_3": len(self.with_speedup),
            "with_speedup_1_3": self.with_speedup,
            "with_speedup_1_3_by_auto": by_auto,
            "auto_never_worse": self.auto_never_worse,
            "options": asdict(self.options),
            "networks": self.networks,
            "real": self.real,
            "settings": self.settings,
            "curves": {
                name: {method: [[asdict(point) for point in run] for run in runs] for method, runs in rows.items()}
                for name, rows in self.curves.items()
            },
        }

    def table(self) -> list[dict[str, object]]:
        """The main values, a row for each setting and method."""
        rows: list[dict[str, object]] = []
        for name, found in self.settings.items():
            for method, row in found["methods"].items():
                ratio: Measured = row["steps_ratio"]
                interval = {"steps_ratio": ratio.value, "low": ratio.low, "high": ratio.high}
                finals = {"seconds_ratio": row["seconds_ratio"].value, "fd": row["fd"].value}
                before = {"fd_vanilla": found["vanilla"]["fd"].value}
                rows.append({"setting": name, "method": method, **interval, **finals, **before})
        return rows


def summarise(
    curves: Curves, sets: Mapping[str, TrainingData], options: RunOptions, *, seeds: int, device: torch.device
) -> TrainingEvaluation:
    """Compute the figures over the seeds, and draw the charts."""
    settings: dict[str, dict[str, Any]] = {}
    for name, methods in curves.items():
        setting = SETTINGS[name]
        for steps in map(str, setting.sampling):
            settings[f"{name} {setting.sampler}-{steps}"] = {
                "auto": auto_method(sets[setting.data].classes, options, device),
                "vanilla": _finals(methods[VANILLA], steps),
                "methods": {
                    method: _compare(methods[VANILLA], runs, steps)
                    for method, runs in methods.items()
                    if method != VANILLA
                },
            }
    real, networks = {}, {}
    for name in dict.fromkeys(SETTINGS[setting].data for setting in curves):
        chosen = slice(0, options.samples)
        labels = sets[name].labels
        real[name] = sets[name].judge.measure(sets[name].x_0[chosen], None if labels is None else labels[chosen])
        networks[name] = sets[name].judge.name
    drawn = {
        f"{figure}-by-{against}": draw_curves(curves, figure, against=against)
        for figure, against in (("fd", "step"), ("fd", "seconds"), ("accuracy", "step"), ("coverage", "step"))
    }
    pictures = {name: picture for name, picture in drawn.items() if picture is not None}
    return TrainingEvaluation(options, seeds, networks, real, settings, curves, environment(), pictures)


def _compare(
    vanilla: Sequence[Sequence[Checkpoint]], ours: Sequence[Sequence[Checkpoint]], steps: str
) -> dict[str, Any]:
    ratios, paces = [], []
    for before, after in zip(vanilla, ours, strict=True):
        first, second = ([(p.step, p.quality[steps]["fd"]) for p in run] for run in (before, after))
        ratios.append(steps_ratio(first, second))
        paces.append(before[-1].seconds / after[-1].seconds)
    seconds = [ratio * pace for ratio, pace in zip(ratios, paces, strict=True)]
    return {
        "steps_ratio": ratio_over_seeds(ratios),
        "seconds_ratio": ratio_over_seeds(seconds),
        "by_seed": ratios,
        **_finals(ours, steps),
    }


def _finals(runs: Sequence[Sequence[Checkpoint]], steps: str) -> dict[str, Measured]:
    last = [run[-1] for run in runs]
    figures = {name: over_seeds([point.quality[steps][name] for point in last]) for name in last[0].quality[steps]}
    return {**figures, "ms_per_step": over_seeds([1000 * point.seconds / point.step for point in last])}
