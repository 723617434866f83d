"""How much each method against hallucination helps, at equal network calls.

Small networks are trained on data that can be told from hallucinations exactly, and each method samples from them. A
method that rejects samples draws more of them with fewer steps, so that one it keeps costs no more calls.
"""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from privgen.environment import environment
from privgen.evaluation.hallucination_cost import step_ratios
from privgen.evaluation.hallucination_methods import LOSSES, Method, baseline
from privgen.evaluation.hallucination_pictures import draw_shares
from privgen.evaluation.hallucination_plan import Plan
from privgen.evaluation.hallucination_report import HallucinationEvaluation, TaskResult
from privgen.evaluation.hallucination_runs import DATA, LOG, RowLog, SeedRun, add_reductions, fingerprint
from privgen.evaluation.hallucination_scenes import SceneRun, Scenes
from privgen.evaluation.spread import Measured, over_seeds


def evaluate_hallucination(
    plans: Sequence[Plan],
    *,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    cost_steps: int = 40,
) -> HallucinationEvaluation:
    """Train on every task and sample with every method, or go on where an earlier call was interrupted.

    Args:
        plans: tasks, each at most once.
        seed: the first one.
        folder: for finished methods and networks; None keeps nothing.
        cost_steps: of which the time is compared.

    Raises:
        PrivgenError: `folder` cannot be read or written.
    """
    place = None if folder is None else Path(folder)
    log = RowLog(None if place is None else place / LOG)
    tasks: dict[str, TaskResult] = {}
    pictures: dict[str, Image.Image] = {}
    with tqdm(total=sum(_parts(plan) for plan in plans), unit="method", file=sys.stderr) as bar:
        for plan in plans:
            first = _run(plan, seed, place)
            # One at a time: of some tasks, data are large.
            later = (_run(plan, number, place) for number in range(seed + 1, seed + plan.seeds))
            result = _measured(plan, chain([first], later), log, bar)
            tasks[plan.task.name] = result
            pictures[f"{plan.task.name}-samples"] = first.picture()
            pictures[f"{plan.task.name}-shares"] = draw_shares(result.methods)
    return HallucinationEvaluation(tasks, step_ratios(steps=cost_steps), environment(), pictures)


def _run(plan: Plan, seed: int, folder: Path | None) -> SeedRun | SceneRun:
    if isinstance(plan.task, Scenes):
        return SceneRun(plan.task, seed, samples=plan.samples)
    return SeedRun(plan.task, seed, nfe=plan.nfe, samples=plan.samples, folder=folder)


def _parts(plan: Plan) -> int:
    return plan.seeds * (1 + len(plan.task.methods))


def _measured(plan: Plan, runs: Iterable[SeedRun | SceneRun], log: RowLog, bar: "tqdm[None]") -> TaskResult:
    task = plan.task
    methods: Mapping[str, Method | None] = {DATA: None, **task.methods}
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in methods}
    for run in runs:
        for name, method in methods.items():
            bar.set_description(f"{task.name} {name} seed {run.seed}")
            work = _work(plan, method)
            figures = log.get(work, name, run.seed)
            if figures is None:
                figures = run.figures(method)
                log.add(work, task.name, name, run.seed, figures)
            rows[name].append(dict(figures))
            bar.update()
    add_reductions(rows, {name: baseline(task.methods, name) for name in task.methods})
    measured = {name: _over_seeds(found) for name, found in rows.items()}
    return TaskResult(plan.nfe, plan.seeds, plan.samples, task.reader_error, dict(task.ours), measured)


def _work(plan: Plan, method: Method | None) -> str:
    """All that figures depend on but the seed; other methods of the task are no part of it."""
    task = asdict(plan.task)
    settings = {name: value for name, value in task.items() if name not in ("methods", "ours")}
    what = None if method is None else [asdict(method), repr(LOSSES[method.loss])]
    return fingerprint(plan.task.name, settings, plan.nfe, plan.samples, what)


def _over_seeds(rows: Sequence[Mapping[str, float]]) -> dict[str, Measured]:
    return {key: over_seeds([row[key] for row in rows]) for key in rows[0]}
