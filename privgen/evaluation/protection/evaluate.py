"""How much more work an adversary needs when images are protected.

An adversary learns a subject from clean images, and from protected ones: at several training lengths, with several
purifications before, and with some clean images among them. A judge says how much of the subject the adversary's
images show.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from privgen.environment import environment
from privgen.errors import PrivgenError, UsageError
from privgen.evaluation.protection.judge import best_features
from privgen.evaluation.protection.latents import LatentShift, latent_shifts
from privgen.evaluation.protection.log import Log, Row
from privgen.evaluation.protection.page import draw_page
from privgen.evaluation.protection.plan import CONTROL, UNTRAINED, StudyPlan, scene_subjects
from privgen.evaluation.protection.report import PAGE, ProtectionStudy
from privgen.evaluation.protection.run import Study, measure
from privgen.evaluation.protection.subjects import Subject, scene_subject
from privgen.evaluation.protection.summary import outcomes
from privgen.evaluation.workers import Processes
from privgen.hub import EMBEDDED, model_label
from privgen.models.autoencoder import load_autoencoder
from privgen.models.family import Canvas
from privgen.protection.method import PSNR, Method
from privgen.protection.protection import Protection
from privgen.protection.surrogate import Surrogate, at_most


SECOND = "mini"
"""The model whose figures stand beside those of another main model."""

SMALL_SCALES, LARGE_SCALES = (1.5, 3.0), (3.0, 7.5)
"""Guidance scales at which the embedded models draw best, and others, where you name none."""

SHIFTED = 8
"""Most images that shifts of latents are measured on."""

LARGEST = 512
"""Short side in pixels to which larger ones are scaled down for that."""


def evaluate_protection(
    surrogate: Surrogate,
    plan: StudyPlan | None = None,
    *,
    subjects: Sequence[Subject] = (),
    autoencoders: Sequence[str | os.PathLike[str]] = (),
    folder: str | os.PathLike[str] | None = None,
    processes: Processes | None = None,
) -> ProtectionStudy:
    """Measure what protections take from adversaries.

    Args:
        surrogate: the model that is personalised, and that protections are computed against.
        plan: what is measured, and on how much.
        subjects: photographs of your own; without any, scenes of nouns that the embedded models do not know.
        autoencoders: folders or Hub ids of autoencoders in whose latent spaces shifts are measured, at a PSNR of
            `privgen.protection.method.PSNR`.
        folder: where the rows are kept, so that an interrupted run goes on. None keeps none.
        processes: those that share the work; None is this one alone.

    Returns:
        The same in every process, but for the page, which only the first draws.

    Raises:
        UsageError: the plan's methods cannot be run, or two subjects or autoencoders have one name.
        PrivgenError: a model or the log cannot be read, or the adversary lacks a package.
    """
    plan, shared = plan or StudyPlan(), processes or Processes()
    if not plan.guidance_scales:
        plan = replace(plan, guidance_scales=SMALL_SCALES if os.fspath(surrogate.model) in EMBEDDED else LARGE_SCALES)
    if len({Path(name).name for name in autoencoders}) < len(autoencoders):
        raise UsageError("Two autoencoders have the same name, and reports tell them apart by it; rename a folder.")
    models = {model_label(surrogate.model): surrogate}
    if SECOND not in models:
        models[SECOND] = Surrogate(SECOND, placement=surrogate.placement)
    named = {subject.name: subject for subject in subjects}
    if len(named) < len(subjects):
        raise UsageError("Two subjects have the same name; rename a folder.")
    side = Canvas.of_pipeline(surrogate.pipeline).size
    named = named or {noun: scene_subject(noun, side) for noun in scene_subjects(plan.preset)}
    methods, left_out = _runnable(plan, surrogate)
    if not any(block.second for block in plan.blocks()):
        models = dict(list(models.items())[:1])
    study = Study(plan, models, named, methods, best_features())
    log = Log(None if folder is None else Path(folder), study.works(), shared.rank)
    rows = measure(study, log, shared)
    settings = _settings(study)
    result = ProtectionStudy(
        settings,
        outcomes(rows),
        _latents(study, surrogate, autoencoders) if shared.is_main else {},
        left_out,
        _seconds_per_cell(rows),
        environment(),
        _command(surrogate, study, autoencoders),
    )
    return replace(result, pages={PAGE: draw_page(result, rows)}) if shared.is_main else result


def _runnable(plan: StudyPlan, surrogate: Surrogate) -> tuple[dict[str, Method], dict[str, str]]:
    """The methods that can be run, and why others cannot."""
    found, left_out = {}, {}
    for name, method in plan.resolved_methods().items():
        try:
            method.prepare(surrogate)
        except PrivgenError as error:
            left_out[name] = " ".join(str(error).split())
        else:
            found[name] = method
    if set(found) <= {CONTROL} and left_out:
        raise UsageError(f"No method is left to measure: {'; '.join(left_out.values())}")
    return found, left_out


def _settings(study: Study) -> dict[str, Any]:
    """What the record says of how figures came about."""
    plan = study.plan
    return {
        "model": next(iter(study.models)),
        "preset": plan.preset,
        "seed": plan.seed,
        "subjects": list(study.subjects),
        "psnr": plan.psnr,
        "guidance_scales": list(plan.guidance_scales),
        "steps": plan.sampling.steps,
        "samples": study.samples,
        "judge": study.features.name,
        "methods": {name: repr(method) for name, method in study.methods.items()},
    }


def _latents(
    study: Study, surrogate: Surrogate, autoencoders: Sequence[str | os.PathLike[str]]
) -> dict[str, Mapping[str, LatentShift]]:
    """Shifts of latents by each method, on a few images of every subject."""
    loaded = {Path(name).name: load_autoencoder(name) for name in autoencoders}
    if not loaded:
        return {}
    each = max(SHIFTED // len(study.subjects), 1)
    images = [at_most(image, LARGEST) for subject in study.subjects.values() for image in subject.images[:each]]
    found: dict[str, Mapping[str, LatentShift]] = {}
    for name, method in study.methods.items():
        results = Protection(method, surrogate).protect(images, psnr=PSNR, seed=study.plan.seed)
        found[name] = latent_shifts(images, [result.image for result in results], loaded, seed=study.plan.seed)
    return found


def _seconds_per_cell(rows: Sequence[Row]) -> float:
    """Mean over the cells in which an adversary trained."""
    seconds = {row.cell: row.seconds for row in rows if row.cell.method != UNTRAINED}
    return sum(seconds.values()) / max(len(seconds), 1)


def _command(surrogate: Surrogate, study: Study, autoencoders: Sequence[str | os.PathLike[str]]) -> str:
    """The command that makes the same results."""
    plan = study.plan
    options = ["--model", os.fspath(surrogate.model), "--preset", plan.preset, "--seed", str(plan.seed)]
    options += ["--psnr", f"{plan.psnr:g}"]
    options += [] if surrogate.vae is None else ["--vae", os.fspath(surrogate.vae)]
    options += [part for name in plan.adversaries for part in ("--adversary", name)]
    options += [part for method in plan.methods if isinstance(method, str) for part in ("--method", method)]
    options += [] if plan.longest is None else ["--effort", str(plan.longest)]
    options += [part for scale in plan.guidance_scales for part in ("--guidance-scale", f"{scale:g}")]
    options += ["--steps", str(plan.sampling.steps)]
    options += [part for s in study.subjects.values() if not s.noun for part in ("--subject", s.source)]
    options += [part for name in autoencoders for part in ("--autoencoder", os.fspath(name))]
    return shlex.join(["privgen", "evaluate", "protection", *options])
