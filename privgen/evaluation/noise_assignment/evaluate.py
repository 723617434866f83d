"""How much faster small models learn with immiscible noise assignment.

The same network learns from the same batches, timesteps and noise by every method, from several seeds; nothing but
the assignment of the noise differs. Samples are drawn as it learns, from the same noise for all, and compared with
held-out data by the Frechet distance of a fixed network's features, by coverage, and where the model is conditioned by
whether that network sees what was asked for.
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tqdm import tqdm

from privgen import __version__
from privgen.errors import UsageError
from privgen.evaluation.noise_assignment.data import TrainingData, fashion_data, scene_data
from privgen.evaluation.noise_assignment.log import LOG, RunLog
from privgen.evaluation.noise_assignment.report import Curves, TrainingEvaluation, summarise
from privgen.evaluation.noise_assignment.runs import train_curve
from privgen.evaluation.noise_assignment.settings import METHODS, SETTINGS, VANILLA, RunOptions, Setting, objective_of
from privgen.io.fingerprints import settings_fingerprint
from privgen.io.journal import Journal


DEFAULT_METHODS = ("linear", "within-label", "knn-4", "knn-16", "knn-64")


@dataclass(frozen=True)
class Planned:
    """One run.

    Attributes:
        setting: name in `SETTINGS`.
        method: name in `METHODS`.
        seed: of the run.
    """

    setting: str
    method: str
    seed: int


def evaluate_training(
    *,
    data: Sequence[str] = ("fashion", "scenes"),
    objectives: Sequence[str] = ("ddim", "flow"),
    methods: Sequence[str] = DEFAULT_METHODS,
    seeds: int = 3,
    seed: int = 0,
    options: RunOptions | None = None,
    folder: str | os.PathLike[str] | None = None,
    sets: Mapping[str, TrainingData] | None = None,
    fashion: Path | None = None,
    device: str | torch.device = "cpu",
) -> TrainingEvaluation:
    """Train with every method from every seed, or go on where an earlier call was interrupted.

    Args:
        data: "fashion" and "scenes".
        objectives: "ddim", "flow", and "ddim-scaled", Fashion-MNIST with Stable Diffusion's noise schedule.
        methods: names in `METHODS`; "vanilla", with which the others are compared, is added.
        seeds: runs of each.
        seed: the first one.
        options: of every run.
        folder: for finished runs, the networks that judge and what they need; None keeps nothing.
        sets: training sets by name, instead of the packaged ones.
        fashion: folder of Fashion-MNIST's files, see `privgen.data.fashion.load_fashion`.
        device: where to train.

    Raises:
        UsageError: names that do not exist, or nothing to compare.
        PrivgenError: Fashion-MNIST is missing, or `folder` cannot be read or written.
    """
    options, place = options or RunOptions(), torch.device(device)
    runs = plan(data=data, objectives=objectives, methods=methods, seeds=seeds, seed=seed)
    cache = None if folder is None else Path(folder)
    used = sets or load_sets(data, cache, fashion=fashion, device=place)
    log = RunLog(Journal(None if cache is None else cache / LOG))
    works = {name: fingerprint(used[SETTINGS[name].data], SETTINGS[name], options) for name in _unique(runs)}
    waiting = [run for run in runs if log.get(works[run.setting], run.method, run.seed) is None]
    with tqdm(total=len(runs) * options.steps, initial=(len(runs) - len(waiting)) * options.steps, unit="step") as bar:
        bar.write(describe(runs, waiting, options), file=sys.stderr)
        for run in waiting:
            bar.set_description(f"{run.setting} {run.method} seed {run.seed}")
            setting = SETTINGS[run.setting]
            curve = train_curve(
                used[setting.data],
                setting,
                METHODS[run.method],
                seed=run.seed,
                options=options,
                device=place,
                on_step=bar.update,
            )
            log.add(works[run.setting], run.setting, run.method, run.seed, curve)
    curves: Curves = {}
    for run in runs:
        found = log.get(works[run.setting], run.method, run.seed) or []
        curves.setdefault(run.setting, {}).setdefault(run.method, []).append(found)
    return summarise(curves, used, options, seeds=seeds, device=place)


def plan(
    *, data: Sequence[str], objectives: Sequence[str], methods: Sequence[str], seeds: int, seed: int = 0
) -> list[Planned]:
    """All runs, seed by seed, so that an interrupted evaluation has as many of every method.

    Methods that go by labels are left out where there are none.

    Raises:
        UsageError: names that do not exist, or nothing to compare.
    """
    for what, given, known in (
        ("data", data, {setting.data for setting in SETTINGS.values()}),
        ("objective", objectives, set(map(objective_of, SETTINGS))),
        ("method", methods, set(METHODS)),
    ):
        strange = sorted(set(given) - known)
        if strange or not given:
            raise UsageError(
                f"There is no {what} {', '.join(strange) or 'given'}; choose from {', '.join(sorted(known))}."
            )
    if seeds < 1:
        raise UsageError(f"--seeds is {seeds}; give at least 1, and 3 for an interval that says something.")
    names = list(dict.fromkeys((VANILLA, *methods)))
    chosen = [n for n, setting in SETTINGS.items() if setting.data in data and objective_of(n) in objectives]
    runs = [
        Planned(setting, method, number)
        for number in range(seed, seed + seeds)
        for setting in chosen
        for method in names
        if SETTINGS[setting].conditional or not METHODS[method].within_labels
    ]
    if all(run.method == VANILLA for run in runs):
        raise UsageError("There is nothing to compare with vanilla; add --method linear, or data with labels.")
    return runs


def describe(runs: Sequence[Planned], waiting: Sequence[Planned], options: RunOptions) -> str:
    """What is to be done, in one line a setting and a total."""
    lines = []
    for name in _unique(runs):
        methods = dict.fromkeys(run.method for run in runs if run.setting == name)
        seeds = len({run.seed for run in runs})
        sampling = ", ".join(map(str, SETTINGS[name].sampling))
        lines.append(f"{name}: {', '.join(methods)}; {seeds} seeds; judged with {sampling} sampling steps")
    done = len(runs) - len(waiting)
    total = f"{len(runs)} runs of {options.steps} steps of {options.batch_size}, {done} of them done"
    return "\n".join([*lines, total])


def load_sets(
    names: Sequence[str], cache: Path | None, *, fashion: Path | None, device: torch.device
) -> dict[str, TrainingData]:
    """The packaged training sets, by name.

    Raises:
        PrivgenError: Fashion-MNIST is missing, or `cache` cannot be written.
    """
    sets = {}
    # First what may be missing.
    if "fashion" in names:
        sets["fashion"] = fashion_data(fashion, cache, device=device)
    if "scenes" in names:
        sets["scenes"] = scene_data(cache, device=device)
    return sets


def fingerprint(data: TrainingData, setting: Setting, options: RunOptions) -> str:
    """All that a run depends on but its method and seed, as 16 hexadecimal digits."""
    return settings_fingerprint(data.identity, asdict(setting), asdict(options), __version__)[:16]


def _unique(runs: Sequence[Planned]) -> list[str]:
    return list(dict.fromkeys(run.setting for run in runs))
