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
    help="3 Gaussians on a line, 25 on a grid, pictures of three shapes, chess boards, or scenes by mini; repeatable.",
)
@click.option(
    "--preset",
    type=click.Choice(["quick", "standard"]),
    default="standard",
    show_default=True,
    help="How much is measured; the options below change single settings.",
)
@click.option("--nfe", type=click.IntRange(12, 1000), help="Network calls a sample.")
@click.option("--seeds", type=click.IntRange(2), help="Trainings to average over.")
@click.option("--samples", type=click.IntRange(10), help="Samples that each method keeps.")
@click.option("--training-steps", type=click.IntRange(1), help="Steps of each training.")
@options.seed(help="The first seed.")
@options.output(metavar="DIR", help="Folder for results.json and pictures; an interrupted evaluation goes on from it.")
@options.json()
@options.overwrite()
def hallucination(
    tasks: tuple[str, ...],
    preset: str,
    nfe: int | None,
    seeds: int | None,
    samples: int | None,
    training_steps: int | None,
    seed: int,
    output: Path | None,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Measure methods against hallucination, at equal network calls.

    Small networks learn data whose every sample can be checked: Gaussians on a line or a grid, where a sample farther
    than 3 standard deviations from every one is hallucinated; pictures of at most one triangle, square and pentagon;
    chess boards. The shipped model makes scenes, in which a classifier looks for what was asked for. "reduction" says
    by what share hallucinations become fewer than with plain sampling of the same kind, "coverage" what is left of its
    coverage. Figures come with 95 % intervals over the seeds.

    Three networks are trained for each seed of a task but scenes. With -o they are kept, with finished methods, and an
    interrupted evaluation goes on where it stopped. Processes that `torchrun` or `accelerate launch` starts share the
    seeds.
    """
    from privgen.evaluation.hallucination.evaluate import evaluate_hallucination
    from privgen.evaluation.hallucination.plan import plan
    from privgen.evaluation.text_to_image.evaluate import check_output
    from privgen.evaluation.workers import processes

    if output is not None:
        check_output(output, overwrite=overwrite)
    plans = plan(tasks, preset, nfe=nfe, seeds=seeds, samples=samples, training_steps=training_steps)
    shared = processes()
    result = evaluate_hallucination(plans, seed=seed, folder=output, processes=shared)
    if not shared.is_main:
        return
    if output is not None:
        result.save(output, overwrite=overwrite)
    echo(result.record() if as_json else result.table(), as_json=as_json)
