"""How much each method against hallucination helps, at equal network calls.

Small networks are trained on data that can be told from hallucinations exactly, and each method samples from them. A
method that rejects samples draws more of them with fewer steps, so that one it keeps costs no more calls.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from PIL import Image
from tqdm import tqdm

from privgen.environment import environment
from privgen.evaluation.hallucination.content import without_strata
from privgen.evaluation.hallucination.cost import step_ratios
from privgen.evaluation.hallucination.methods import LOSSES, Method, baseline
from privgen.evaluation.hallucination.pictures import draw_fractions
from privgen.evaluation.hallucination.plan import Plan
from privgen.evaluation.hallucination.report import HallucinationEvaluation, TaskResult
from privgen.evaluation.hallucination.runs import DATA, LOG, RowLog, SeedRun, add_reductions, fingerprint
from privgen.evaluation.hallucination.scenes import SceneRun, Scenes
from privgen.evaluation.intervals import Measured, over_seeds
from privgen.evaluation.workers import Processes
from privgen.io.journal import Journal


_Row: TypeAlias = tuple[str, str, int, dict[str, float]]
"""SamplingTask, method, seed and figures."""


def evaluate_hallucination(
    plans: Sequence[Plan],
    *,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    cost_steps: int = 200,
    processes: Processes | None = None,
) -> HallucinationEvaluation:
    """Train on every task and sample with every method, or go on where an earlier call was interrupted.

    Args:
        plans: tasks, each at most once.
        seed: the first one.
        folder: for finished methods and networks; None keeps nothing.
        cost_steps: of which the time is compared.
        processes: those that share the seeds of the tasks; by default this one alone.

    Returns:
        The same in every process.

    Raises:
        PrivgenError: `folder` cannot be read or written.
    """
    shared, place = processes or Processes(), None if folder is None else Path(folder)
    log = RowLog(Journal.of_process(place, LOG, shared.rank))
    mine = shared.share([(plan, number) for plan in plans for number in range(seed, seed + plan.seeds)])
    rows: list[_Row] = []
    drawn: list[tuple[str, Image.Image]] = []
    with tqdm(total=sum(map(_parts, mine)), unit="method", file=sys.stderr, disable=not shared.is_main) as bar:
        for plan, number in mine:
            # One at a time: of some tasks, data are large.
            run = _run(plan, number, place)
            rows += _measured(plan, run, log, bar)
            if number == seed:
                drawn.append((f"{plan.task.name}-samples", run.picture()))
    found = {(task, method, number): figures for task, method, number, figures in shared.gather(rows)}
    tasks = {plan.task.name: _result(plan, seed, found) for plan in plans}
    shares = {f"{name}-fractions": draw_fractions(result.methods) for name, result in tasks.items()}
    costs = shared.gather([step_ratios(steps=cost_steps)] if shared.is_main else [])[0]
    return HallucinationEvaluation(tasks, costs, environment(), shares | dict(shared.gather(drawn)))


def _run(plan: Plan, seed: int, folder: Path | None) -> SeedRun | SceneRun:
    if isinstance(plan.task, Scenes):
        return SceneRun(plan.task, seed, samples=plan.samples)
    return SeedRun(plan.task, seed, nfe=plan.nfe, samples=plan.samples, folder=folder)


def _parts(unit: tuple[Plan, int]) -> int:
    return 1 + len(unit[0].task.methods)


def _measured(plan: Plan, run: SeedRun | SceneRun, log: RowLog, bar: "tqdm[None]") -> Iterator[_Row]:
    """The figures of data and methods from one seed, from the log where they are there."""
    methods: Mapping[str, Method | None] = {DATA: None, **plan.task.methods}
    for name, method in methods.items():
        bar.set_description(f"{plan.task.name} {name} seed {run.seed}")
        work = _work(plan, method)
        figures = log.get(work, name, run.seed)
        if figures is None:
            figures = run.figures(method)
            log.add(work, plan.task.name, name, run.seed, figures)
        yield plan.task.name, name, run.seed, dict(figures)
        bar.update()


def _result(plan: Plan, seed: int, found: Mapping[tuple[str, str, int], dict[str, float]]) -> TaskResult:
    task, numbers = plan.task, range(seed, seed + plan.seeds)
    rows = {name: [found[task.name, name, number] for number in numbers] for name in (DATA, *task.methods)}
    add_reductions(rows, {name: baseline(task.methods, name) for name in task.methods})
    measured = {name: _over_seeds(of_seeds) for name, of_seeds in rows.items()}
    return TaskResult(plan.nfe, plan.seeds, plan.samples, task.reader_error, dict(task.ours), measured)


def _work(plan: Plan, method: Method | None) -> str:
    """All that figures depend on but the seed; other methods of the task are no part of it."""
    task = asdict(plan.task)
    settings = {name: value for name, value in task.items() if name not in ("methods", "ours")}
    what = None if method is None else [asdict(method), repr(LOSSES[method.loss])]
    return fingerprint(plan.task.name, settings, plan.nfe, plan.samples, what)


def _over_seeds(rows: Sequence[Mapping[str, float]]) -> dict[str, Measured]:
    return {key: over_seeds([row[key] for row in rows]) for key in without_strata(rows[0])}
