"""How much does each method against hallucination help, at equal network calls?

Small networks learn data whose hallucinations can be told exactly, and each method samples from them. A method that
rejects samples draws more of them with fewer steps, so that a sample that it keeps costs no more network calls.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeAlias

from PIL import Image

from privgen.environment import environment
from privgen.evaluation.hallucination.content import without_strata
from privgen.evaluation.hallucination.cost import step_ratios
from privgen.evaluation.hallucination.methods import LOSSES, SamplingMethod, baseline
from privgen.evaluation.hallucination.pictures import draw_fractions
from privgen.evaluation.hallucination.plan import Plan
from privgen.evaluation.hallucination.report import HallucinationEvaluation, TaskResult
from privgen.evaluation.hallucination.runs import DATA, LOG, RowLog, SeedRun, add_reductions, work_fingerprint
from privgen.evaluation.hallucination.scenes import SceneRun, Scenes
from privgen.evaluation.intervals import over_seeds
from privgen.evaluation.workers import Processes
from privgen.io.journal import Journal
from privgen.io.progress import Bar


Row: TypeAlias = tuple[str, str, int, dict[str, float]]
"""Task, method, seed and figures."""


def evaluate_hallucination(
    plans: Sequence[Plan],
    *,
    seed: int = 0,
    folder: str | os.PathLike[str] | None = None,
    cost_steps: int = 200,
    processes: Processes | None = None,
) -> HallucinationEvaluation:
    """Train networks for every task and sample with every method, or continue an interrupted evaluation.

    Args:
        plans: the tasks, each at most once.
        seed: the first seed.
        folder: where finished methods and networks are kept; None keeps nothing.
        cost_steps: how many steps of each kind are timed.
        processes: the processes that share the seeds of the tasks; by default this one alone.

    Returns:
        The same in every process.

    Raises:
        PrivgenError: `folder` cannot be read or written.
    """
    processes = processes or Processes()
    path = None if folder is None else Path(folder)
    log = RowLog(Journal.of_process(path, LOG, processes.rank))
    mine = processes.share([(plan, number) for plan in plans for number in range(seed, seed + plan.seeds)])
    total = sum(1 + len(plan.task.methods) for plan, _ in mine)
    rows: list[Row] = []
    sheets: list[tuple[str, Image.Image]] = []
    with Bar(total=total, unit="method", file=sys.stderr, disable=not processes.is_main) as bar:
        for plan, number in mine:
            # One run at a time, since the data of some tasks are large.
            run: SeedRun | SceneRun
            if isinstance(plan.task, Scenes):
                run = SceneRun(plan.task, number, samples=plan.samples)
            else:
                run = SeedRun(plan.task, number, nfe=plan.nfe, samples=plan.samples, folder=path)
            rows += _measure(plan, run, log, bar)
            if number == seed:
                sheets.append((f"{plan.task.name}-samples", run.picture()))
    figures = {(task, method, number): found for task, method, number, found in processes.gather(rows)}
    tasks = {plan.task.name: _result(plan, seed, figures) for plan in plans}
    charts = {f"{name}-fractions": draw_fractions(result.methods) for name, result in tasks.items()}
    costs = processes.gather([step_ratios(steps=cost_steps)] if processes.is_main else [])[0]
    return HallucinationEvaluation(tasks, costs, environment(), charts | dict(processes.gather(sheets)))


def _measure(plan: Plan, run: SeedRun | SceneRun, log: RowLog, bar: "Bar[None]") -> Iterator[Row]:
    """The figures of the held-out data and of each method for one seed, from the log if it has them."""
    methods: Mapping[str, SamplingMethod | None] = {DATA: None, **plan.task.methods}
    settings = {name: value for name, value in asdict(plan.task).items() if name not in ("methods", "ours")}
    for name, method in methods.items():
        bar.set_description(f"{plan.task.name} {name} seed {run.seed}")
        # The figures depend on all of this and on the seed, but not on the task's other methods.
        what = None if method is None else [asdict(method), repr(LOSSES[method.loss])]
        work = work_fingerprint(plan.task.name, settings, plan.nfe, plan.samples, what)
        figures = log.get(work, name, run.seed)
        if figures is None:
            figures = run.figures(method)
            log.add(work, plan.task.name, name, run.seed, figures)
        yield plan.task.name, name, run.seed, dict(figures)
        bar.update()


def _result(plan: Plan, seed: int, figures: Mapping[tuple[str, str, int], dict[str, float]]) -> TaskResult:
    task, numbers = plan.task, range(seed, seed + plan.seeds)
    rows = {name: [figures[task.name, name, number] for number in numbers] for name in (DATA, *task.methods)}
    add_reductions(rows, {name: baseline(task.methods, name) for name in task.methods})
    measured = {
        name: {key: over_seeds([row[key] for row in of_seeds]) for key in without_strata(of_seeds[0])}
        for name, of_seeds in rows.items()
    }
    return TaskResult(plan.nfe, plan.seeds, plan.samples, task.reader_error, dict(task.ours), measured)
