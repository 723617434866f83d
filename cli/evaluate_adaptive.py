"""``privgen evaluate adaptive``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from privgen.cli import options
from privgen.cli.output import echo


if TYPE_CHECKING:
    from privgen.evaluation.adaptive.plan import Source
    from privgen.watermark.write.mark_spec import Carrier


@click.command(
    epilog=options.examples(
        "privgen evaluate adaptive --n 20 --json -o runs/adaptive",
        "privgen evaluate adaptive --source generated --carrier token --n 20 --collected 50",
        "privgen evaluate adaptive --epsilon 4 --steps 200",
    )
)
@options.model()
@click.option(
    "--n", type=click.IntRange(2), default=20, show_default=True, help="Images to attack, marked and unmarked each."
)
@options.seed(help="Seed of the key, the images and the attacks.")
@options.output(metavar="DIR", help="Folder for results.json.")
@click.option(
    "--source",
    type=click.Choice(["photographs", "generated"]),
    default="photographs",
    show_default=True,
    help="What images to attack.",
)
@click.option(
    "--carrier",
    type=click.Choice(["tile", "token", "latent", "tile+latent"]),
    show_default="the model's own choice",
    help="What marks are written with.",
)
@click.option(
    "--collected",
    type=click.IntRange(2),
    default=100,
    show_default=True,
    help="Marked images of the key that the attacker has; there are as many unmarked ones.",
)
@click.option(
    "--epsilon",
    "epsilons",
    type=click.FloatRange(0, 255, min_open=True),
    multiple=True,
    default=(2, 4, 8),
    show_default=True,
    help="Largest change of a pixel value by attacks that follow a gradient, in 1/255; repeatable.",
)
@click.option(
    "--steps",
    type=click.IntRange(1),
    default=40,
    show_default=True,
    help="Steps of the attacks that follow a gradient.",
)
@click.option(
    "--fit-steps",
    type=click.IntRange(1),
    default=400,
    show_default=True,
    help="Training steps of the surrogate extractor.",
)
@options.device()
@options.dtype()
@options.json()
@options.overwrite()
def adaptive(
    model: str,
    n: int,
    seed: int,
    output: Path | None,
    source: Source,
    carrier: Carrier | None,
    collected: int,
    epsilons: tuple[float, ...],
    steps: int,
    fit_steps: int,
    device: str,
    dtype: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Measure how well marks stand against attackers who know this watermark.

    An attacker removes the mark of a key from marked images, and forges it on the same images without a mark.
    "detected" is the fraction of images that carry the mark afterwards: low after a removal that worked, high after a
    forgery that worked.

    Attackers differ in what they have. "extractor" has the extractor itself, and for forgery also marked images.
    "surrogate" has marked and unmarked images, and trains a small network on them. "averaging_N" has N marked images,
    and unmarked ones. "embedding" has the model's autoencoder. The number after extractor, surrogate and embedding is
    the largest change of a pixel value, in 1/255. "remarking_N" marks images again with N keys of its own, "loud" ones
    at 34 dB.
    """
    from privgen.evaluation.adaptive.evaluate import evaluate_adaptive
    from privgen.evaluation.adaptive.plan import AdaptivePlan
    from privgen.evaluation.record import check_output
    from privgen.evaluation.watermark.model import load_watermark_model
    from privgen.hub import Placement
    from privgen.watermark.write.mark_spec import NETWORK_CARRIERS, MarkSpec

    if output is not None:
        check_output(output, overwrite=overwrite)
    wanted = MarkSpec(carrier).network_carrier
    loaded = load_watermark_model(model, Placement(device, dtype), carriers=(wanted,) if wanted else NETWORK_CARRIERS)
    plan = AdaptivePlan(n, seed, source, carrier, collected, epsilons, steps, fit_steps)
    result = evaluate_adaptive(loaded, plan)
    if output is not None:
        result.save(output, overwrite=overwrite)
    echo(result.record() if as_json else result.table(), as_json=as_json)
