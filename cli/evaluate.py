"""``privgen evaluate``."""

from pathlib import Path

import click

from privgen.cli import options
from privgen.cli.groups import Group
from privgen.cli.output import echo


@click.group(cls=Group, epilog=options.examples("privgen evaluate model --n 200 -o runs/evaluation"))
def evaluate() -> None:
    """Measure how good models are, and how well marks and protections hold."""


@evaluate.command(
    epilog=options.examples(
        "privgen evaluate model --n 200 --seed 1 --json -o runs/evaluation",
        "privgen evaluate model --model runs/diffusion/model --classifier runs/classifier/model/classifier",
    )
)
@options.model()
@click.option("--n", type=click.IntRange(2), default=200, show_default=True, help="Pictures to generate and judge.")
@options.seed()
@options.output(metavar="DIR", help="Folder for results.json and contact sheets.")
@click.option(
    "--classifier",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Classifier of scenes to judge by; by default the one that ships.",
)
@click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Pictures at a time.")
@click.option("--steps", type=click.IntRange(1, 1000), default=25, show_default=True, help="Denoising steps.")
@click.option("--guidance", type=float, default=3.0, show_default=True, help="Scale of classifier-free guidance.")
@options.device()
@options.dtype()
@options.json()
@options.overwrite()
def model(
    model: str,
    n: int,
    seed: int,
    output: Path | None,
    classifier: Path | None,
    batch_size: int,
    steps: int,
    guidance: float,
    device: str,
    dtype: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Measure a text-to-image model on prompts, scenes and photographs that it has not seen.

    Prompts are captions of scenes with one and two objects; a classifier judges the pictures. Figures come with 95 %
    intervals, in results.json under "spread".
    """
    from privgen.evaluation.model import check_output, evaluate_model
    from privgen.hub import load_pipeline
    from privgen.metrics.scenes import load_classifier

    if output is not None:
        check_output(output, overwrite=overwrite)
    judge = load_classifier(classifier)
    pipeline = load_pipeline(model, device=device, dtype=dtype)
    result = evaluate_model(
        pipeline, judge, name=model, n=n, seed=seed, batch_size=batch_size, steps=steps, guidance=guidance
    )
    if output is not None:
        result.save(output, overwrite=overwrite)
    hidden = () if as_json else ("spread", "environment")
    echo({key: value for key, value in result.record().items() if key not in hidden}, as_json=as_json)
