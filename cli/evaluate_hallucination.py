"""``privgen evaluate hallucination``."""

from __future__ import annotations

from pathlib import Path

import click

from privgen.cli import options
from privgen.cli.output import echo


@click.command(
    epilog=options.examples(
        "privgen evaluate hallucination --preset standard --json -o runs/hallucination",
        "privgen evaluate hallucination --task grid --nfe 25 --seeds 3 --samples 10000 --json",
        "torchrun --nproc-per-node 2 -m privgen evaluate hallucination --preset standard -o runs/hallucination",
    )
)
@click.option(
    "--task",
    "tasks",
    type=click.Choice(["line", "grid", "shapes", "chess", "scenes"]),
    multiple=True,
    show_default="all",
    help="3 Gaussians on a line, 25 on a grid, images of three shapes, chess boards, or scenes by mini; repeatable.",
)
@click.option(
    "--preset",
    type=click.Choice(["quick", "standard"]),
    default="standard",
    show_default=True,
    help="How much is measured; the next four options change single amounts.",
)
@click.option("--nfe", type=click.IntRange(12, 1000), help="Network calls per sample.")
@click.option("--seeds", type=click.IntRange(2), help="Seeds to average over.")
@click.option("--samples", type=click.IntRange(10), help="Samples that each method keeps.")
@click.option("--training-steps", type=click.IntRange(1), help="Steps of each training.")
@click.option(
    "--timed-steps",
    type=click.IntRange(2),
    default=200,
    show_default=True,
    help="Denoising steps of each kind that are timed, to say what a method costs.",
)
@options.seed(help="The first seed.")
@options.output(metavar="DIR", help="Folder for results.json and charts; an interrupted evaluation continues from it.")
@options.json()
@options.overwrite()
def hallucination(
    tasks: tuple[str, ...],
    preset: str,
    nfe: int | None,
    seeds: int | None,
    samples: int | None,
    training_steps: int | None,
    timed_steps: int,
    seed: int,
    output: Path | None,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Measure methods that reduce hallucinations, at equal network calls.

    Small networks learn data on which every sample can be checked. On a line or a grid of Gaussians, a sample is
    hallucinated if it is farther than 3 standard deviations from every mode. Images show at most one triangle, square
    and pentagon, or legal chess boards. The shipped model makes scenes, in which a classifier looks for the objects of
    the prompt.

    "reduction" is the fraction of hallucinations that a method removes, compared with plain sampling with the same
    sampler. "coverage" is the fraction of that sampler's coverage that it keeps. All figures have 95 % intervals over
    the seeds.

    Each seed of a task trains three networks; scenes train none. With -o, networks and finished methods are kept, and
    an interrupted evaluation continues where it stopped. Processes that `torchrun` or `accelerate launch` starts share
    the seeds.
    """
    from privgen.evaluation.hallucination.evaluate import evaluate_hallucination
    from privgen.evaluation.hallucination.plan import plan
    from privgen.evaluation.record import check_output
    from privgen.evaluation.workers import processes

    if output is not None:
        check_output(output, overwrite=overwrite)
    plans = plan(tasks, preset, nfe=nfe, seeds=seeds, samples=samples, training_steps=training_steps)
    shared = processes()
    result = evaluate_hallucination(plans, seed=seed, cost_steps=timed_steps, folder=output, processes=shared)
    if not shared.is_main:
        return
    if output is not None:
        result.save(output, overwrite=overwrite)
    echo(result.record() if as_json else result.table(), as_json=as_json)
