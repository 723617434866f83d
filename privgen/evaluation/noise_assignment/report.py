"""What `evaluate training` found: figures over the seeds, the record, plots."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from privgen.data.sheets import save_picture
from privgen.environment import Environment, environment
from privgen.evaluation.intervals import Measured, over_seeds
from privgen.evaluation.noise_assignment.data import TrainingData
from privgen.evaluation.noise_assignment.pictures import draw_curves
from privgen.evaluation.noise_assignment.ratio import is_speedup, is_worse, ratio_over_seeds, steps_ratio
from privgen.evaluation.noise_assignment.runs import Checkpoint
from privgen.evaluation.noise_assignment.settings import SETTINGS, VANILLA, RunOptions, auto_method
from privgen.evaluation.record import finite
from privgen.evaluation.text_to_image.evaluate import RESULTS
from privgen.io.files import write_text


Curves = dict[str, dict[str, list[list[Checkpoint]]]]
"""Checkpoints by setting, method and seed."""


@dataclass(frozen=True)
class TrainingEvaluation:
    """What was measured.

    Attributes:
        options: of every run.
        seeds: runs of each method.
        networks: by data, the network whose features are compared.
        real: by data, what the measures say of as many real training samples: the best that can be hoped for.
        settings: for each setting, as "fashion-flow euler-5": "auto" (name of the method that `assign_noise` takes by
            itself), "vanilla" (its final figures), and under "methods" for each other method "steps_ratio" (vanilla's
            steps over ours to vanilla's final quality), "seconds_ratio" (the same times vanilla's seconds a step
            over ours) and its final figures.
        curves: checkpoints by setting, method and seed.
        environment: versions.
        pictures: plots by name.
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
        """Settings in which a method is at least 1.3 times faster, with an interval above 1."""
        return [name for name in self.settings if any(is_speedup(r) for r in self._ratios(name).values())]

    @property
    def auto_never_worse(self) -> int | None:
        """1 if in no setting the interval of what "auto" takes lies below 1; None if that was not measured."""
        autos = [self._ratios(name).get(row["auto"]) for name, row in self.settings.items()]
        measured = [ratio for ratio in autos if ratio is not None and math.isfinite(ratio.high)]
        return int(not any(is_worse(ratio) for ratio in measured)) if len(measured) == len(autos) > 0 else None

    def _ratios(self, setting: str) -> dict[str, Measured]:
        return {name: row["steps_ratio"] for name, row in self.settings[setting]["methods"].items()}

    def record(self) -> dict[str, Any]:
        """Everything but the pictures, in the terms of JSON."""
        by_auto = [n for n, row in self.settings.items() if _faster(self._ratios(n).get(row["auto"]))]
        return finite(
            {
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
                "environment": asdict(self.environment),
            }
        )

    def table(self) -> list[dict[str, object]]:
        """A row for each setting and method."""
        rows: list[dict[str, object]] = []
        for name, found in self.settings.items():
            for method, row in found["methods"].items():
                ratio: Measured = row["steps_ratio"]
                interval = {"steps_ratio": ratio.value, "low": ratio.low, "high": ratio.high}
                finals = {"seconds_ratio": row["seconds_ratio"].value, "fd": row["fd"].value}
                before = {"fd_vanilla": found["vanilla"]["fd"].value}
                rows.append({"setting": name, "method": method, **interval, **finals, **before})
        return rows

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write `results.json` and the plots.

        Raises:
            PrivgenError: a file exists and may not be replaced, or cannot be written.
        """
        for name, picture in self.pictures.items():
            save_picture(picture, Path(folder) / f"{name}.png", overwrite=overwrite)
        write_text(Path(folder) / RESULTS, json.dumps(self.record(), indent=2) + "\n", overwrite=overwrite)


def summarise(
    curves: Curves, sets: Mapping[str, TrainingData], options: RunOptions, *, seeds: int, device: torch.device
) -> TrainingEvaluation:
    """The figures over the seeds, and plots."""
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
        real[name] = sets[name].measure(sets[name].x_0[chosen], None if labels is None else labels[chosen])
        networks[name] = sets[name].network
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


def _faster(ratio: Measured | None) -> bool:
    return ratio is not None and is_speedup(ratio)
