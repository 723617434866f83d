"""How well marks survive attacks, ours beside others', and what the attacks cost in quality.

Images of held-out prompts are generated without a mark and with ours, from the same noise; baselines mark the ones
without. Every image, marked or not, goes through every attack with the same random draws, and is read again.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from privgen.diffusion.sampling import Sampling
from privgen.environment import environment
from privgen.errors import UsageError
from privgen.evaluation.robustness.baselines import BASELINES, SLOW, load_baselines
from privgen.evaluation.robustness.contestants import (
    Contestant,
    KeyReader,
    Reader,
    SearchingReader,
    on_generated,
    reader_of,
)
from privgen.evaluation.robustness.log import Log, Row, work_id
from privgen.evaluation.robustness.page import ExampleImage, Examples, draw_page
from privgen.evaluation.robustness.plan import Planned, Preset, RobustnessPlan, plan_attacks
from privgen.evaluation.robustness.report import PAGE, RobustnessEvaluation
from privgen.evaluation.robustness.run import Batch, Comparison, measure
from privgen.evaluation.robustness.scores import marked_p_values, matches_of
from privgen.evaluation.robustness.summary import lead_over_baselines, method_scores
from privgen.evaluation.watermark.generation import Generation, draw_keys
from privgen.evaluation.watermark.model import WatermarkModel
from privgen.evaluation.watermark.negatives import fingerprint
from privgen.evaluation.watermark.readings import CLEAN
from privgen.evaluation.workers import Processes
from privgen.models.family import Canvas
from privgen.watermark.write.mark_spec import NETWORK_CARRIERS


METHODS = (*NETWORK_CARRIERS, *BASELINES)
"""Names of all methods: our carriers, and the baselines."""


def evaluate_robustness(
    model: WatermarkModel,
    plan: RobustnessPlan | None = None,
    sampling: Sampling | None = None,
    *,
    reader: Reader | KeyReader | None = None,
    folder: str | os.PathLike[str] | None = None,
    processes: Processes | None = None,
) -> RobustnessEvaluation:
    """Measure the marks of a model, and of baselines on the same images, under attacks.

    Args:
        model: see `privgen.evaluation.watermark.model.load_watermark_model`.
        plan: what is measured, and on how much.
        sampling: how images are sampled.
        reader: reads our marks; None reads them as `privgen watermark detect` does, see `RobustnessPlan.search`.
        folder: where the rows are kept, so that an interrupted run goes on. None keeps none.
        processes: those that share the work; None is this one alone.

    Returns:
        The same in every process, but for the page, which only the first draws.

    Raises:
        UsageError: a name in the plan that does not exist, or a baseline that is not installed.
        PrivgenError: the log cannot be read or written, or an attack fails.
    """
    plan, shared = plan or RobustnessPlan(), processes or Processes()
    preset = plan.sized_preset()
    generation = Generation(model.pipeline, plan.seed, plan.prompts, sampling or Sampling())
    reader = reader or reader_of(model, plan.search)
    names, left_out = _choose(model, plan, preset)
    contestants, too_large = _contestants(names, generation, model, reader)
    if not contestants:
        raise UsageError(f"No method is left to measure: {'; '.join(too_large.values())}.")
    comparison = Comparison(
        contestants,
        plan_attacks(preset, model, only=plan.attacks),
        generation,
        draw_keys(preset.n, torch.Generator().manual_seed(plan.seed), "image"),
        preset.slow or preset.few,  # a method that was asked for by name is measured, however slow
        preset.negatives,
        plan.perceptual,
    )
    log = Log(None if folder is None else Path(folder), _works(model, comparison, generation), shared.rank)
    rows = sorted(measure(comparison, log, shared), key=lambda row: row.image)
    scores = method_scores(comparison, rows)
    settings = _settings(model, plan, comparison, generation, reader)
    result = RobustnessEvaluation(
        settings,
        next((name for name in names if name in NETWORK_CARRIERS), None),
        scores,
        comparison.planned,
        {**left_out, **too_large},
        lead_over_baselines(comparison, rows, scores),
        environment(),
        _command(settings, plan, searches=isinstance(reader, SearchingReader)),
    )
    if not shared.is_main:
        return result
    return replace(result, pages={PAGE: draw_page(result, _examples(comparison, generation.prompt(0), rows))})


def _settings(
    model: WatermarkModel,
    plan: RobustnessPlan,
    comparison: Comparison,
    generation: Generation,
    reader: Reader | KeyReader,
) -> dict[str, Any]:
    """What the record says of how figures came about."""
    n = len(comparison.keys)
    return {
        "model": model.name,
        "preset": plan.preset,
        "n": n,
        "negatives": min(comparison.negatives, n),
        "seed": plan.seed,
        "steps": generation.sampling.steps,
        "guidance_scale": generation.guidance_scale,
        "robust_steps": model.robust_steps,
        "reader": repr(reader),
    }


def _choose(model: WatermarkModel, plan: RobustnessPlan, preset: Preset) -> tuple[list[str], dict[str, str]]:
    """Names of the methods to measure, ours first, and why others are left out."""
    methods = plan.methods
    if unknown := [name for name in methods if name not in METHODS]:
        raise UsageError(f"No method is called {unknown[0]!r}; choose from {', '.join(METHODS)}.")
    if absent := [name for name in methods if name in NETWORK_CARRIERS and name not in model.carriers]:
        raise UsageError(f"The model {model.name} lacks the carrier {absent[0]}; choose from {', '.join(METHODS)}.")
    own = [name for name in model.carriers if name in methods] if methods else list(model.carriers[: preset.carriers])
    others = [name for name in BASELINES if plan.baselines and (not methods or name in methods)]
    left_out: dict[str, str] = {}
    if not methods and not preset.slow:
        reason = "too slow for this preset; name it with --method, or use --preset standard"
        left_out = {name: reason for name in others if name in SLOW}
        others = [name for name in others if name not in SLOW]
    if not own and not others:
        raise UsageError("No method is left to measure; name one with --method, or leave --no-baselines out.")
    return [*own, *others], left_out


def _contestants(
    names: Sequence[str], generation: Generation, model: WatermarkModel, reader: Reader | KeyReader
) -> tuple[list[Contestant], dict[str, str]]:
    """The methods of these names, and why some of them cannot mark images of the model's size."""
    # One reader for all carriers, so that it reads unmarked images once.
    own = [on_generated(carrier, generation, model, reader) for carrier in model.carriers if carrier in names]
    side = Canvas.of_pipeline(model.pipeline).size
    baselines, left_out = load_baselines([name for name in names if name in BASELINES], (side, side))
    return [*own, *baselines], left_out


def _works(model: WatermarkModel, comparison: Comparison, generation: Generation) -> dict[tuple[str, str], str]:
    """What the rows of each method and attack depend on."""
    images = fingerprint(model, generation)
    attacks = {
        CLEAN: "",
        **{entry.key: repr(entry.attack) for entry in comparison.planned if entry.attack is not None},
    }
    return {
        (contestant.name, key): work_id(images, contestant.identity, attack)
        for contestant in comparison.contestants
        for key, attack in attacks.items()
    }


def _examples(comparison: Comparison, prompt: str, rows: Sequence[Row]) -> Examples:
    """Image 0 without a mark and with each method's, and with the first method's under every attack."""
    batch, by_key = Batch(comparison, [0]), {(row.method, row.attack): row for row in rows if row.image == 0}

    def shown(contestant: Contestant, entry: Planned | None, title: str) -> ExampleImage:
        row, messages = by_key[contestant.name, entry.key if entry else CLEAN], contestant.messages(comparison.keys)
        matches, p = int(matches_of([row], messages)[0]), float(marked_p_values([row], messages)[0])
        return ExampleImage(batch.attacked(batch.marked(contestant), entry)[0], title, matches, contestant.n_bits, p)

    return Examples(
        ExampleImage(batch.plain()[0], f"no mark: {prompt}"),
        [shown(contestant, None, contestant.name) for contestant in comparison.contestants],
        [shown(comparison.contestants[0], e, e.key) for e in comparison.planned if e.attack is not None],
    )


def _command(settings: Mapping[str, Any], plan: RobustnessPlan, *, searches: bool) -> str:
    """The command that makes the same results."""
    names = ("model", "preset", "n", "negatives", "seed", "steps", "guidance_scale", "robust_steps")
    options = [part for name in names for part in (f"--{name.replace('_', '-')}", str(settings[name]))]
    options += [part for name in plan.attacks for part in ("--attack", name)]
    options += [part for name in plan.methods for part in ("--method", name)]
    options += [] if searches else ["--no-search"]
    options += [] if plan.baselines else ["--no-baselines"]
    options += [] if plan.perceptual else ["--no-perceptual"]
    return shlex.join(["privgen", "evaluate", "robustness", *options])
