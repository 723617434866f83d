"""``privgen evaluate protection``."""

from __future__ import annotations

from pathlib import Path

import click

from privgen.cli import options
from privgen.cli.output import echo
from privgen.cli.protect import METHODS


ADVERSARIES = ("lora", "prompt-embeds", "textual-inversion", "dreambooth")
"""The names of `privgen.evaluation.protection.plan.ADVERSARIES`, which a test compares."""


@click.command(
    epilog=options.examples(
        "privgen evaluate protection -o runs/protection",
        "privgen evaluate protection --preset standard --model mini-sd --vae madebyollin/taesd --json",
        "privgen evaluate protection --subject photos/cat --subject photos/mug --method encoder -o runs/mine",
        "torchrun --nproc-per-node 2 -m privgen evaluate protection --preset standard -o runs/protection",
    )
)
@options.model()
@options.vae()
@click.option(
    "--preset",
    type=click.Choice(["quick", "standard", "full"]),
    default="quick",
    show_default=True,
    help="How many subjects, seeds, methods, adversaries and purifications are measured.",
)
@options.seed()
@options.output(metavar="DIR", help="Folder for results.json, the page protection.html, and a log for reruns.")
@click.option(
    "--method",
    "methods",
    type=click.Choice(METHODS),
    multiple=True,
    show_default="those of the preset",
    help="Protection to measure; repeatable. Noise is always measured, too.",
)
@click.option(
    "--adversary",
    "adversaries",
    type=click.Choice(ADVERSARIES),
    multiple=True,
    show_default="those of the preset",
    help="Adversary to measure against; repeatable.",
)
@click.option(
    "--subject",
    "subjects",
    type=click.Path(path_type=Path),
    multiple=True,
    metavar="FOLDER",
    show_default="scenes",
    help="Folder with at least 3 photographs of one subject; repeatable.",
)
@click.option(
    "--autoencoder",
    "autoencoders",
    multiple=True,
    metavar="NAME",
    help="Folder or Hub id of an autoencoder in whose latents to measure shifts; repeatable.",
)
@click.option(
    "--psnr",
    type=click.FloatRange(20, 60),
    default=34,
    show_default=True,
    metavar="DB",
    help="Quality of the protected images.",
)
@click.option(
    "--effort",
    type=click.IntRange(4),
    show_default="what suits adversary and model",
    metavar="STEPS",
    help="Training steps of the longest training; the others are a half and a quarter of it.",
)
@click.option(
    "--guidance-scale",
    "guidance_scales",
    type=click.FloatRange(0),
    multiple=True,
    show_default="1.5 and 3 for mini, 3 and 7.5 for others",
    help="Guidance scale of the adversary's images; repeatable, and the best counts.",
)
@click.option("--steps", type=click.IntRange(1, 1000), default=20, show_default=True, help="Denoising steps.")
@options.device()
@options.dtype()
@options.json()
@options.overwrite()
def protection(
    model: str,
    vae: str | None,
    preset: str,
    seed: int,
    output: Path | None,
    methods: tuple[str, ...],
    adversaries: tuple[str, ...],
    subjects: tuple[Path, ...],
    autoencoders: tuple[str, ...],
    psnr: float,
    effort: int | None,
    guidance_scales: tuple[float, ...],
    steps: int,
    device: str,
    dtype: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Measure how much more work an adversary needs to learn a subject from protected images.

    The adversary trains on clean images, on protected ones, and on images with mere noise of the same PSNR, as a
    control; for three lengths each. A judge that noise does not fool says how much of the subject the adversary's
    images show. Larger presets also purify the images before the training, and protect only some of them. Figures come
    with 95 % intervals, under "ci95".

    With -o, a run goes on where it stopped. The adversaries lora and dreambooth train networks: on large models, use a
    GPU. lora needs `pip install 'privgen[adversaries]'`.
    """
    from privgen.diffusion.sampling import Sampling
    from privgen.evaluation.protection.evaluate import evaluate_protection
    from privgen.evaluation.protection.plan import StudyPlan
    from privgen.evaluation.protection.report import PAGE
    from privgen.evaluation.protection.subjects import photo_subject
    from privgen.evaluation.record import check_output
    from privgen.evaluation.workers import processes
    from privgen.hub import Placement
    from privgen.protection.surrogate import Surrogate

    if output is not None:
        check_output(output, [PAGE], overwrite=overwrite)
    shared = processes()
    placement = Placement(shared.device if device == "auto" else device, dtype)
    plan = StudyPlan(preset, seed, methods, adversaries, psnr, effort, guidance_scales, Sampling(steps))
    result = evaluate_protection(
        Surrogate(model, vae, placement=placement),
        plan,
        subjects=[photo_subject([folder]) for folder in subjects],
        autoencoders=autoencoders,
        folder=output,
        processes=shared,
    )
    if not shared.is_main:
        return
    if output is not None:
        result.save(output, overwrite=overwrite)
    echo(result.record() if as_json else result.summary(), as_json=as_json)
