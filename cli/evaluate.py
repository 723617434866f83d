"""``privgen evaluate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from privgen.cli import options
from privgen.cli.evaluate_adaptive import adaptive
from privgen.cli.evaluate_calibration import calibration
from privgen.cli.evaluate_hallucination import hallucination
from privgen.cli.evaluate_objects import objects
from privgen.cli.evaluate_protection import protection
from privgen.cli.evaluate_robustness import robustness
from privgen.cli.evaluate_training import training
from privgen.cli.groups import Group
from privgen.cli.output import echo


if TYPE_CHECKING:
    from privgen.watermark.write.mark_spec import NetworkCarrier


def _sampling_options(command: Callable[..., None]) -> Callable[..., None]:
    """How images are generated and where; every command that generates some has these."""
    decorators = [
        click.option("--batch-size", type=click.IntRange(1), default=8, show_default=True, help="Images at a time."),
        click.option("--steps", type=click.IntRange(1, 1000), default=25, show_default=True, help="Denoising steps."),
        click.option(
            "--guidance-scale", type=float, default=3.0, show_default=True, help="Scale of classifier-free guidance."
        ),
        options.device(),
        options.dtype(),
        options.json(),
        options.overwrite(),
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


@click.group(
    cls=Group,
    epilog=options.examples(
        "privgen evaluate model --n 200 -o runs/evaluation",
        "privgen evaluate watermark --n 200 -o runs/watermark",
    ),
)
def evaluate() -> None:
    """Measure how good models are, and how well marks and protections hold."""


@evaluate.command(
    epilog=options.examples(
        "privgen evaluate model --n 200 --seed 1 --json -o runs/evaluation",
        "privgen evaluate model --model runs/text-to-image/model --classifier runs/classifier/model/classifier",
    )
)
@options.model()
@click.option("--n", type=click.IntRange(2), default=200, show_default=True, help="Images to generate and judge.")
@options.seed()
@options.output(metavar="DIR", help="Folder for results.json and contact sheets.")
@click.option(
    "--classifier",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Classifier of scenes that judges the images; by default the one that ships with mini.",
)
@_sampling_options
def model(
    model: str,
    n: int,
    seed: int,
    output: Path | None,
    classifier: Path | None,
    batch_size: int,
    steps: int,
    guidance_scale: float,
    device: str,
    dtype: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Measure a text-to-image model on prompts, scenes and photographs that it has not seen.

    Prompts are captions of scenes with one and two objects, and a classifier judges the images. All figures have 95 %
    intervals, in results.json under "ci95".
    """
    from privgen.diffusion.sampling import Sampling
    from privgen.evaluation.record import check_output
    from privgen.evaluation.text_to_image.evaluate import evaluate_model
    from privgen.hub import load_pipeline
    from privgen.metrics.scenes import load_classifier

    if output is not None:
        check_output(output, overwrite=overwrite)
    judge = load_classifier(classifier)
    pipeline = load_pipeline(model, device=device, dtype=dtype)
    sampling = Sampling(steps, guidance_scale, batch_size=batch_size)
    result = evaluate_model(pipeline, judge, name=model, n=n, seed=seed, sampling=sampling)
    if output is not None:
        result.save(output, overwrite=overwrite)
    hidden = () if as_json else ("ci95", "environment")
    echo({key: value for key, value in result.record().items() if key not in hidden}, as_json=as_json)


@evaluate.command(
    epilog=options.examples(
        "privgen evaluate watermark --n 200 --seed 1 --json -o runs/watermark",
        "privgen evaluate watermark --carrier latent --n 50 --negatives 500",
    )
)
@options.model()
@click.option(
    "--n",
    type=click.IntRange(2),
    default=200,
    show_default=True,
    help="Images to mark with each carrier.",
)
@options.seed(help="Seed of all randomness, also of the keys; the same seed gives the same images.")
@options.output(metavar="DIR", help="Folder for results.json and pictures.")
@click.option(
    "--carrier",
    "carriers",
    type=click.Choice(["token", "latent"]),
    multiple=True,
    show_default="all that the model has",
    help="What marks are written with; repeatable.",
)
@click.option(
    "--negatives",
    type=click.IntRange(0),
    default=2000,
    show_default=True,
    help="Unmarked images to generate, counting those beside the marked ones.",
)
@click.option(
    "--photos",
    type=click.IntRange(0),
    default=100,
    show_default=True,
    help="Held-out photographs to mark; as negatives, all photographs are read unmarked.",
)
@options.robust_steps()
@_sampling_options
def watermark(
    model: str,
    n: int,
    seed: int,
    output: Path | None,
    carriers: tuple[NetworkCarrier, ...],
    negatives: int,
    photos: int,
    robust_steps: int,
    batch_size: int,
    steps: int,
    guidance_scale: float,
    device: str,
    dtype: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Measure how well marks are found, and how often marks are found where there are none.

    The command marks images of held-out prompts, and photographs, with random keys, and compares them with the
    unmarked ones. Then it looks for 20 keys in images without a mark. Figures come with 95 % intervals, under "ci95".
    The first figures are those of the model's default carrier, which "carrier" names; a carrier that the model lacks
    is null. With -o, an interrupted run goes on where it stopped with the unmarked images.
    """
    from privgen.diffusion.sampling import Sampling
    from privgen.evaluation.record import check_output
    from privgen.evaluation.watermark.evaluate import WatermarkPlan, evaluate_watermark
    from privgen.evaluation.watermark.model import load_watermark_model
    from privgen.evaluation.watermark.report import FILES
    from privgen.hub import Placement
    from privgen.watermark.write.mark_spec import NETWORK_CARRIERS

    if output is not None:
        check_output(output, FILES, overwrite=overwrite)
    placement = Placement(device, dtype)
    loaded = load_watermark_model(model, placement, carriers=carriers or NETWORK_CARRIERS, robust_steps=robust_steps)
    plan = WatermarkPlan(n, seed, negatives, photos)
    sampling = Sampling(steps, guidance_scale, batch_size=batch_size)
    result = evaluate_watermark(loaded, plan, sampling, folder=output)
    if output is not None:
        result.save(output, overwrite=overwrite)
    echo(result.record() if as_json else result.summary(), as_json=as_json)


evaluate.add_command(calibration)
evaluate.add_command(hallucination)
evaluate.add_command(objects)
evaluate.add_command(protection)
evaluate.add_command(robustness)
evaluate.add_command(training)
evaluate.add_command(adaptive)
