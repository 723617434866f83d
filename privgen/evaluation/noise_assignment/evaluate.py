"""How much faster do small models learn with immiscible noise assignment?

The same network learns from the same batches, timesteps and noise with every method, from several seeds; nothing but
the assignment of the noise differs. As it learns, samples are drawn from the same noise for all methods. They are
compared with held-out data by the Frechet distance of a fixed network's features and by coverage, and for conditioned
models also by whether that network sees the class that was asked for.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from privgen import __version__
from privgen.evaluation.noise_assignment.data import TrainingData, fashion_data, scene_data
from privgen.evaluation.noise_assignment.log import LOG, RunLog
from privgen.evaluation.noise_assignment.report import Curves, TrainingEvaluation, summarise
from privgen.evaluation.noise_assignment.runs import train_curve
from privgen.evaluation.noise_assignment.settings import (
    METHODS,
    SETTINGS,
    Comparison,
    PlannedRun,
    RunOptions,
    TrainingSetting,
)
from privgen.io.fingerprints import settings_fingerprint
from privgen.io.journal import Journal
from privgen.io.progress import Bar


def evaluate_training(
    comparison: Comparison,
    *,
    options: RunOptions | None = None,
    folder: str | os.PathLike[str] | None = None,
    sets: Mapping[str, TrainingData] | None = None,
    fashion: Path | None = None,
    device: str | torch.device = "cpu",
) -> TrainingEvaluation:
    """Train with every method from every seed, or continue an interrupted evaluation.

    Args:
        comparison: the methods, data, objectives and seeds.
        options: how long and how fast every model learns.
        folder: where finished runs and the networks that judge are kept; None keeps nothing.
        sets: training sets by name; by default the packaged ones.
        fashion: folder of Fashion-MNIST's files, see `privgen.data.fashion.load_fashion`.
        device: where the models learn.

    Raises:
        PrivgenError: Fashion-MNIST is missing, or `folder` cannot be read or written.
    """
    options, device = options or RunOptions(), torch.device(device)
    cache = None if folder is None else Path(folder)
    runs = comparison.runs()
    sets = sets or load_sets(comparison.data, cache, fashion=fashion, device=device)
    log = RunLog(Journal(None if cache is None else cache / LOG))
    works = {
        run.setting: fingerprint(sets[SETTINGS[run.setting].data], SETTINGS[run.setting], options) for run in runs
    }
    waiting = [run for run in runs if log.get(works[run.setting], run.method, run.seed) is None]
    with Bar(total=len(runs) * options.steps, initial=(len(runs) - len(waiting)) * options.steps, unit="step") as bar:
        bar.write(describe(runs, waiting, options), file=sys.stderr)
        for run in waiting:
            bar.set_description(f"{run.setting} {run.method} seed {run.seed}")
            setting = SETTINGS[run.setting]
            curve = train_curve(
                sets[setting.data],
                setting,
                METHODS[run.method],
                seed=run.seed,
                options=options,
                device=device,
                on_step=bar.update,
            )
            log.add(works[run.setting], run.setting, run.method, run.seed, curve)
    curves: Curves = {}
    for run in runs:
        found = log.get(works[run.setting], run.method, run.seed) or []
        curves.setdefault(run.setting, {}).setdefault(run.method, []).append(found)
    return summarise(curves, sets, options, seeds=comparison.seeds, device=device)


def describe(runs: Sequence[PlannedRun], waiting: Sequence[PlannedRun], options: RunOptions) -> str:
    """What will be done: a line for each setting, and one for the total."""
    lines = []
    for name in dict.fromkeys(run.setting for run in runs):
        methods = dict.fromkeys(run.method for run in runs if run.setting == name)
        seeds = len({run.seed for run in runs})
        sampling = ", ".join(map(str, SETTINGS[name].sampling))
        lines.append(f"{name}: {', '.join(methods)}; {seeds} seeds; judged with {sampling} sampling steps")
    done = len(runs) - len(waiting)
    total = f"{len(runs)} runs of {options.steps} steps of {options.batch_size} images, {done} of them done"
    return "\n".join([*lines, total])


def load_sets(
    names: Sequence[str], cache: Path | None, *, fashion: Path | None, device: torch.device
) -> dict[str, TrainingData]:
    """Load the packaged training sets, by name.

    Raises:
        PrivgenError: Fashion-MNIST is missing, or `cache` cannot be written.
    """
    sets = {}
    # Fashion-MNIST comes first, since its files may be missing.
    if "fashion" in names:
        sets["fashion"] = fashion_data(fashion, cache, device=device)
    if "scenes" in names:
        sets["scenes"] = scene_data(cache, device=device)
    return sets


def fingerprint(data: TrainingData, setting: TrainingSetting, options: RunOptions) -> str:
    """A digest of everything that a run depends on, except method and seed: 16 hexadecimal digits."""
    return settings_fingerprint(data.identity, asdict(setting), asdict(options), __version__)[:16]
