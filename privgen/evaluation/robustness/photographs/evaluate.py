"""How well marks of photographs survive attacks at the photographs' own sizes, ours beside others'.

Every method marks the same photographs. Every photograph, marked or not, goes through every attack with the same
random draws, and is read again.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from privgen.environment import environment
from privgen.errors import UsageError
from privgen.evaluation.intervals import Measured, fraction
from privgen.evaluation.robustness.baselines import BASELINES, load_baselines
from privgen.evaluation.robustness.contestants import Contestant
from privgen.evaluation.robustness.log import Log, Row, work_id
from privgen.evaluation.robustness.photographs.attacks import plan_photograph_attacks
from privgen.evaluation.robustness.photographs.contestants import NAME, FrontDoor, at_two_sizes
from privgen.evaluation.robustness.photographs.images import Photographs
from privgen.evaluation.robustness.photographs.page import draw_page, example_photographs
from privgen.evaluation.robustness.photographs.plan import PRESET, PhotographsPlan
from privgen.evaluation.robustness.photographs.report import PhotographsEvaluation
from privgen.evaluation.robustness.photographs.seconds import measure_seconds
from privgen.evaluation.robustness.report import PAGE
from privgen.evaluation.robustness.run import Comparison, measure
from privgen.evaluation.robustness.scores import falsely_detected
from privgen.evaluation.robustness.summary import lead_over_baselines, method_scores
from privgen.evaluation.watermark.generation import draw_keys
from privgen.evaluation.watermark.readings import CLEAN, RATES
from privgen.evaluation.workers import Processes
from privgen.watermark.watermark import Watermark


_LEAD_RATE = "1e-6"


def evaluate_photographs(
    mark: Watermark,
    plan: PhotographsPlan | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    processes: Processes | None = None,
) -> PhotographsEvaluation:
    """Measure marks of photographs, and those of baselines on the same photographs, under attacks.

    Args:
        mark: writes and reads our marks.
        plan: what is measured, and on how many photographs.
        folder: where the rows are kept, so that an interrupted run goes on. None keeps none.
        processes: those that share the work; None is this one alone.

    Returns:
        The same in every process, but for the page and the seconds, which only the first makes.

    Raises:
        UsageError: a name in the plan that does not exist, a baseline that is not installed, or a folder without
            photographs.
        PrivgenError: a photograph or the log cannot be read, the log cannot be written, or an attack fails.
    """
    plan, shared = plan or PhotographsPlan(), processes or Processes()
    photographs = Photographs.some(plan.images, plan.n, plan.seed)
    n = len(photographs.paths)
    planned = plan_photograph_attacks(n, plan.attacks)
    door = FrontDoor(mark, plan.carrier, plan.robust_steps, plan.search)
    contestants, left_out = _contestants(plan, door, photographs)
    comparison = Comparison(
        contestants,
        planned,
        photographs,
        draw_keys(n, torch.Generator().manual_seed(plan.seed), "image"),
        plan.slow_n(),
        plan.negatives,
        plan.perceptual,
    )
    place = None if folder is None else Path(folder)
    log = Log(place, _works(comparison), shared.rank, photographs.fingerprints())
    rows = sorted(measure(comparison, log, shared), key=lambda row: row.image)
    scores = method_scores(comparison, rows, with_losses=False)
    times = plan.seconds and NAME in plan.chosen() and shared.is_main
    result = PhotographsEvaluation(
        _settings(mark, plan, n),
        scores,
        {contestant.name: _false_positives(comparison, contestant, rows) for contestant in contestants},
        planned,
        left_out,
        lead_over_baselines(comparison, rows, scores, _LEAD_RATE),
        measure_seconds(door, comparison.keys[0]) if times else {},
        _notes(comparison, plan),
        environment(),
        _command(mark, plan),
    )
    if not shared.is_main:
        return result
    return replace(result, pages={PAGE: draw_page(result, example_photographs(comparison, photographs, rows))})


def _contestants(
    plan: PhotographsPlan, door: FrontDoor, photographs: Photographs
) -> tuple[list[Contestant], dict[str, str]]:
    """The methods of a plan, and why some of them cannot mark these photographs."""
    chosen = plan.chosen()
    own = [door.contestant(photographs)] if NAME in chosen else []
    smallest = min(photographs.sizes(), key=lambda size: size[0] * size[1])
    found, left_out = load_baselines([name for name in chosen if name in BASELINES], smallest)
    if not own and not found:
        raise UsageError(f"No method is left to measure: {'; '.join(left_out.values())}.")
    return [*own, *(at_two_sizes(baseline, BASELINES[baseline.name]()) for baseline in found)], left_out


def _works(comparison: Comparison) -> dict[tuple[str, str], str]:
    """What the rows of each method and attack depend on, beside their photograph."""
    attacks = {
        CLEAN: "",
        **{entry.key: repr(entry.attack) for entry in comparison.planned if entry.attack is not None},
    }
    return {
        (contestant.name, key): work_id(PRESET, str(comparison.source.seed), contestant.identity, attack)
        for contestant in comparison.contestants
        for key, attack in attacks.items()
    }


def _false_positives(comparison: Comparison, contestant: Contestant, rows: Sequence[Row]) -> dict[str, Measured]:
    """The fraction of unmarked photographs in which the key is found, by name of the rate."""
    own, messages = [row for row in rows if row.method == contestant.name], contestant.messages(comparison.keys)
    return {name: fraction(np.ravel(falsely_detected(own, messages, fpr))) for name, fpr in RATES.items()}


def _settings(mark: Watermark, plan: PhotographsPlan, n: int) -> dict[str, Any]:
    """What the record says of how figures came about."""
    return {
        "model": mark.networks.model,
        "preset": PRESET,
        "images": None if plan.images is None else str(plan.images),
        "n": n,
        "negatives": min(plan.negatives, n),
        "seed": plan.seed,
        "carrier": plan.carrier,
        "robust_steps": plan.robust_steps,
        "search": plan.search,
        "threads": torch.get_num_threads(),
    }


def _notes(comparison: Comparison, plan: PhotographsPlan) -> list[str]:
    """What a reader of the figures should know about this run."""
    n = len(comparison.keys)
    notes = [f"{plan.n} photographs were asked for, and the folder holds {n}."] if n < plan.n else []
    slow = [contestant.name for contestant in comparison.contestants if contestant.slow]
    if slow and comparison.slow < n:
        notes.append(f"{', '.join(slow)} was measured on the first {comparison.slow} photographs, because it is slow.")
    return notes


def _command(mark: Watermark, plan: PhotographsPlan) -> str:
    """The command that makes the same results."""
    options = ["--model", str(mark.networks.model), "--preset", PRESET]
    options += [] if plan.images is None else ["--images", str(plan.images)]
    options += [part for name in ("n", "negatives", "seed") for part in (f"--{name}", str(getattr(plan, name)))]
    options += ["--carrier", plan.carrier] if plan.carrier else []
    options += ["--robust-steps", str(plan.robust_steps)] if plan.robust_steps else []
    options += [part for name in plan.attacks for part in ("--attack", name)]
    options += [part for name in plan.methods for part in ("--method", name)]
    options += [] if plan.search else ["--no-search"]
    options += [] if plan.baselines else ["--no-baselines"]
    options += [] if plan.perceptual else ["--no-perceptual"]
    options += [] if plan.seconds else ["--no-seconds"]
    return shlex.join(["privgen", "evaluate", "robustness", *options])
