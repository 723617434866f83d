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

from privgen.diffusion.sampling import BATCH_SIZE, GUIDANCE, STEPS
from privgen.environment import environment
from privgen.errors import UsageError
from privgen.evaluation.intervals import mean
from privgen.evaluation.robustness.baselines import BASELINES, SLOW, load_baselines
from privgen.evaluation.robustness.contestants import (
    Contestant,
    ExtractorReader,
    Reader,
    SearchingReader,
    on_generated,
)
from privgen.evaluation.robustness.log import Log, Row, work_id
from privgen.evaluation.robustness.page import ExampleImage, Examples, draw_page
from privgen.evaluation.robustness.perception import perception
from privgen.evaluation.robustness.plan import Planned, Preset, get_preset, plan_attacks
from privgen.evaluation.robustness.report import PAGE, Lead, MethodScores, RobustnessEvaluation
from privgen.evaluation.robustness.run import Batch, Work, measure
from privgen.evaluation.robustness.scores import (
    LossScales,
    curves_of,
    fit_losses,
    matches_of,
    mean_detected,
    p_of,
    score,
)
from privgen.evaluation.watermark.marking import WatermarkModel
from privgen.evaluation.watermark.negatives import fingerprint
from privgen.evaluation.watermark.readings import CLEAN, RATES, Generation, draw_keys
from privgen.evaluation.workers import Processes
from privgen.watermark.write.mark_spec import CARRIERS


METHODS = (*CARRIERS, *BASELINES)
"""Names of all methods: the carriers of ours, and the baselines."""


def evaluate_robustness(
    model: WatermarkModel,
    *,
    preset: str = "quick",
    n: int | None = None,
    negatives: int | None = None,
    seed: int = 0,
    attacks: Sequence[str] = (),
    methods: Sequence[str] = (),
    baselines: Sequence[str] | None = None,
    read: Reader | None = None,
    perceptual: bool = True,
    batch_size: int = BATCH_SIZE,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE,
    prompts: Sequence[str] = (),
    device: str = "auto",
    folder: str | os.PathLike[str] | None = None,
    processes: Processes | None = None,
) -> RobustnessEvaluation:
    """Measure the marks of a model, and of baselines on the same images, under attacks.

    Args:
        model: see `privgen.evaluation.watermark.marking.load_watermark_model`.
        preset: a key of `privgen.evaluation.robustness.plan.PRESETS`.
        n: images; by default the preset's.
        negatives: images without a mark, each compared with all keys; by default the preset's.
        seed: of prompts, noise, keys and attacks.
        attacks: names or keys of those of the preset to run; by default all.
        methods: of `METHODS`; by default the model's carriers that the preset takes, the default one first, and all
            baselines that it has time for.
        baselines: which baselines may take part; None means all, () none.
        read: reads our marks instead of the model's extractor.
        perceptual: compare images by ST-LPIPS and FD-MNv2 too, where they are installed.
        batch_size: images at a time.
        steps: denoising steps.
        guidance_scale: scale of classifier-free guidance.
        prompts: taken in turn; by default captions of held-out scenes.
        device: of the denoiser that purifies.
        folder: where what was read is noted, and taken up again; None starts afresh.
        processes: those that share the work; by default this one alone.

    Returns:
        The same in every process, but for the pictures, which only the first makes.

    Raises:
        UsageError: an argument that names what does not exist, or a baseline that is not installed.
        PrivgenError: the log cannot be read or written, or an attack fails.
    """
    chosen, shared = get_preset(preset, n, negatives), processes or Processes()
    generation = Generation(model.pipeline, seed, tuple(prompts), batch_size, steps, guidance_scale)
    names, left_out = _choose(
        model, methods, BASELINES if baselines is None else baselines, chosen.carriers, chosen.slow
    )
    contestants, too_large = _contestants(names, generation, model, read)
    if not contestants:
        raise UsageError(f"No method is left to measure: {'; '.join(too_large.values())}.")
    planned = plan_attacks(chosen, model=model.name, pipeline=model.pipeline, device=device, only=attacks)
    keys = draw_keys(chosen.n, torch.Generator().manual_seed(seed), "image")
    # A method that was asked for by name is measured, however slow.
    work = Work(contestants, planned, generation, keys, chosen.slow or chosen.few, chosen.negatives, perceptual)
    log = Log(None if folder is None else Path(folder), _works(model, work), shared.rank)
    rows = sorted(measure(work, log, shared), key=lambda row: row.image)
    scores = _all_scores(work, rows)
    carrier = next((name for name in names if name in CARRIERS), None)
    settings = _settings(model, preset, chosen, generation, read)
    flags = [*_search_flags(read), *(["--no-baselines"] if baselines == () else [])]
    flags += [] if perceptual else ["--no-perceptual"]
    flags += ["--robust-steps", str(model.robust_steps)] if model.robust_steps else []
    result = RobustnessEvaluation(
        settings,
        carrier,
        scores,
        planned,
        {**left_out, **too_large},
        _lead(work, rows, scores),
        environment(),
        _command(settings, attacks, methods, flags),
    )
    if not shared.is_main:
        return result
    return replace(result, pages={PAGE: draw_page(result, _examples(work, contestants[0], rows))})


def _settings(
    model: WatermarkModel, preset: str, chosen: Preset, generation: Generation, read: Reader | None
) -> dict[str, Any]:
    """What a result is of."""
    return {
        "model": model.name,
        "preset": preset,
        "n": chosen.n,
        "negatives": min(chosen.negatives, chosen.n),
        "seed": generation.seed,
        "steps": generation.steps,
        "guidance_scale": generation.guidance_scale,
        "robust_steps": model.robust_steps,
        "reader": repr(read or ExtractorReader(model.extractor)),
    }


def _choose(
    model: WatermarkModel,
    methods: Sequence[str],
    allowed: Sequence[str] | Mapping[str, object],
    carriers: int,
    slow: int,
) -> tuple[list[str], dict[str, str]]:
    """Names of the methods to measure, ours first, and why others are left out."""
    if unknown := [name for name in (*methods, *allowed) if name not in METHODS]:
        raise UsageError(f"No method is called {unknown[0]!r}; choose from {', '.join(METHODS)}.")
    if absent := [name for name in methods if name in CARRIERS and name not in model.present]:
        raise UsageError(f"The model {model.name} lacks the carrier {absent[0]}; choose from {', '.join(METHODS)}.")
    own = [name for name in model.present if name in methods] if methods else list(model.present[:carriers])
    others = [name for name in BASELINES if name in allowed and (not methods or name in methods)]
    left_out: dict[str, str] = {}
    if not methods and not slow:
        reason = "too slow for this preset; name it with --method, or use --preset standard"
        left_out = {name: reason for name in others if name in SLOW}
        others = [name for name in others if name not in SLOW]
    if not own and not others:
        raise UsageError("No method is left to measure; name one with --method, or leave --no-baselines out.")
    return [*own, *others], left_out


def _contestants(
    names: Sequence[str], generation: Generation, model: WatermarkModel, read: Reader | None
) -> tuple[list[Contestant], dict[str, str]]:
    """The methods of these names, and why some of them cannot mark images of the model's size."""
    reader = read or ExtractorReader(model.extractor)  # one for all carriers, so that it reads negatives once
    own = [on_generated(carrier, generation, model, reader) for carrier in model.present if carrier in names]
    side = model.pipeline.unet.config.sample_size
    size = [
        factor * model.pipeline.vae_scale_factor for factor in (side if isinstance(side, Sequence) else (side, side))
    ]
    baselines, left_out = load_baselines([name for name in names if name in BASELINES], (size[0], size[1]))
    return [*own, *baselines], left_out


def _works(model: WatermarkModel, work: Work) -> dict[tuple[str, str], str]:
    """What the rows of each method and attack depend on."""
    images = fingerprint(model, work.generation)
    attacks = {CLEAN: "", **{entry.key: repr(entry.attack) for entry in work.planned if entry.attack is not None}}
    return {
        (contestant.name, key): work_id(images, contestant.identity, attack)
        for contestant in work.contestants
        for key, attack in attacks.items()
    }


def _all_scores(work: Work, rows: Sequence[Row]) -> list[MethodScores]:
    losses = fit_losses(rows)
    return [_scores(work, contestant, rows, losses) for contestant in work.contestants]


def _scores(work: Work, contestant: Contestant, rows: Sequence[Row], losses: LossScales | None) -> MethodScores:
    messages = contestant.messages(work.keys)
    own = [row for row in rows if row.method == contestant.name]
    by_attack = {key: [row for row in own if row.attack == key] for key in {row.attack for row in own}}
    clean = by_attack[CLEAN]
    attacks = {
        entry.key: score(by_attack[entry.key], messages, losses) | perception(by_attack[entry.key], clean)
        if entry.key in by_attack
        else None
        for entry in work.planned
    }
    middle = [entry.key for entry in work.planned if entry.middle and entry.key in by_attack]
    means = {
        f"mean_tpr_{name}": mean(list(mean_detected(own, middle, messages, fpr).values()))
        for name, fpr in (RATES.items() if middle else ())
    }
    return MethodScores(
        contestant.name,
        contestant.name in BASELINES,
        contestant.n_bits,
        len(clean),
        score(clean, messages, None) | perception(clean, ()),
        attacks,
        means,
        curves_of(work.planned, attacks),
    )


def _lead(work: Work, rows: Sequence[Row], scores: Sequence[MethodScores]) -> Lead | None:
    """The first of our methods before the best baseline; image by image, as far as both go."""
    own, baselines = [s for s in scores if not s.baseline and s.means], [s for s in scores if s.baseline and s.means]
    if not own or not baselines:
        return None
    best = max(baselines, key=lambda baseline: baseline.means["mean_tpr_1e-3"].value)
    middle = [entry.key for entry in work.planned if entry.middle]
    messages = {contestant.name: contestant.messages(work.keys) for contestant in work.contestants}
    rates, qualities = [], []
    for name in (own[0].name, best.name):
        of_method = [row for row in rows if row.method == name]
        rates.append(mean_detected(of_method, middle, messages[name], RATES["1e-3"]))
        clean = [row for row in of_method if row.attack == CLEAN]
        qualities.append({row.image: row.psnr_db for row in clean if row.psnr_db is not None})
    return Lead(best.name, *(mean(_differences(*pair)) for pair in (rates, qualities)))


def _differences(ours: Mapping[int, float], theirs: Mapping[int, float]) -> list[float]:
    common = sorted(ours.keys() & theirs.keys())
    return [ours[image] - theirs[image] for image in common] or [float("nan")]


def _examples(work: Work, leading: Contestant, rows: Sequence[Row]) -> Examples:
    """Image 0 without a mark and with each method's; and the leading method's under every attack."""
    batch, by_key = Batch(work, [0]), {(row.method, row.attack): row for row in rows if row.image == 0}

    def shown(contestant: Contestant, entry: Planned | None, title: str) -> ExampleImage:
        row = by_key[contestant.name, CLEAN if entry is None else entry.key]
        messages = contestant.messages(work.keys)
        matches, p = int(matches_of([row], messages)[0]), float(p_of([row], messages)[0])
        pixels = batch.attacked(batch.marked(contestant), entry)[0]
        return ExampleImage(pixels, title, matches, contestant.n_bits, p)

    return Examples(
        ExampleImage(batch.plain()[0], f"no mark: {work.generation.prompt(0)}"),
        [shown(contestant, None, contestant.name) for contestant in work.contestants],
        [shown(leading, entry, entry.key) for entry in work.planned if entry.attack is not None],
    )


def _command(
    settings: Mapping[str, object], attacks: Sequence[str], methods: Sequence[str], flags: Sequence[str]
) -> str:
    """The command that makes the same results."""
    names = ("model", "preset", "n", "negatives", "seed", "steps", "guidance_scale")
    options = [part for name in names for part in (f"--{name}", str(settings[name]))]
    options += [part for name in attacks for part in ("--attack", name)]
    options += [part for name in methods for part in ("--method", name)]
    return shlex.join(["privgen", "evaluate", "robustness", *options, *flags])


def _search_flags(read: Reader | None) -> list[str]:
    return [] if isinstance(read, SearchingReader) else ["--no-search"]
