"""``privgen evaluate adaptive``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from privgen.cli import options
from privgen.cli.output import echo


if TYPE_CHECKING:
    from privgen.watermark.write.mark_spec import Carrier


@click.command(
    epilog=options.examples(
        "privgen evaluate adaptive --n 20 --json -o runs/adaptive",
        "privgen evaluate adaptive --source generated --carrier token --n 20 --collected 50",
        "privgen evaluate adaptive --epsilon 4 --steps 200",
    )
)
@options.model()
@click.option("--n", type=click.IntRange(2), default=20, show_default=True, help="Images to attack, of each kind.")
@options.seed(help="Seed of the key, the images and the attacks.")
@options.output(metavar="DIR", help="Folder for results.json.")
@click.option(
    "--source",
    type=click.Choice(["photographs", "generated"]),
    default="photographs",
    show_default=True,
    help="What the images are.",
)
@click.option(
    "--carrier",
    type=click.Choice(["token", "latent"]),
    show_default="the model's own choice",
    help="What marks are written with.",
)
@click.option(
    "--collected",
    type=click.IntRange(2),
    default=100,
    show_default=True,
    help="Marked images of the key that the attacker has, and as many unmarked ones.",
)
@click.option(
    "--epsilon",
    "epsilons",
    type=click.FloatRange(0, 255, min_open=True),
    multiple=True,
    default=(2, 4, 8),
    show_default=True,
    help="Largest change of a value by attacks that follow a gradient, in 1/255; repeatable.",
)
@click.option("--steps", type=click.IntRange(1), default=40, show_default=True, help="Steps of these attacks.")
@click.option(
    "--fit-steps",
    type=click.IntRange(1),
    default=400,
    show_default=True,
    help="Steps of the training of the surrogate extractor.",
)
@options.device()
@options.dtype()
@options.json()
@options.overwrite()
def adaptive(
    model: str,
    output: Path | None,
    carrier: Carrier | None,
    device: str,
    dtype: str,
    as_json: bool,
    overwrite: bool,
    **chosen: Any,
) -> None:
    """Measure how marks stand against attackers who know this watermark.

    Attackers have different things beside the images: "extractor" has the extractor itself, and for forgery marked
    images; "surrogate" has marked and unmarked images, and trains a small network on them; "averaging_N" has N marked
    images, and unmarked ones; "embedding" has the model's autoencoder.

    Removal is tried on marked images of one key, forgery on the same images without a mark. "detected" is the share
    that carries the key's mark afterwards: low after a removal that worked, high after a forgery that worked.
    Extractor, surrogate and embedding change no value by more than the number in their name, in 1/255.
    """
    from privgen.evaluation.adaptive.evaluate import evaluate_adaptive
    from privgen.evaluation.text_to_image.evaluate import RESULTS
    from privgen.evaluation.watermark.marking import load_watermark_model
    from privgen.io.files import refuse_existing
    from privgen.watermark.write.mark_spec import CARRIERS

    if output is not None:
        refuse_existing(output / RESULTS, overwrite=overwrite)
    loaded = load_watermark_model(model, carriers=(carrier,) if carrier else CARRIERS, device=device, dtype=dtype)
    result = evaluate_adaptive(loaded, carrier=carrier, **chosen)
    if output is not None:
        result.save(output, overwrite=overwrite)
    echo(result.record() if as_json else result.table(), as_json=as_json)
