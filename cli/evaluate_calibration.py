"""``privgen evaluate calibration``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from privgen.cli import options
from privgen.cli.output import echo


if TYPE_CHECKING:
    from privgen.evaluation.calibration.readings import ReadingKind

KINDS = ("tile", "extractor", "objects", "tile_search", "extractor_search", "objects_search")


@click.command(
    epilog=options.examples(
        "privgen evaluate calibration --n 60 --seed 1 --json -o runs/calibration",
        "privgen evaluate calibration --images photos --kind tile --keys 100",
    )
)
@options.model()
@click.option("--n", type=click.IntRange(2), default=20, show_default=True, help="Images of each source.")
@click.option("--keys", type=click.IntRange(1), default=20, show_default=True, help="Random keys for each image.")
@click.option(
    "--searches",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="Images of each source that slow searches go through: for objects, and for what an extractor reads.",
)
@click.option(
    "--images",
    "folder",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of further images, which carry no mark; up to --n of them are read.",
)
@click.option(
    "--kind",
    "kinds",
    type=click.Choice(KINDS),
    multiple=True,
    show_default="all that the model can make",
    help="Kind of reading; repeatable.",
)
@options.seed(help="Seed of images and keys.")
@options.output(metavar="DIR", help="Folder for results.json and plots.")
@options.device()
@options.json()
@options.overwrite()
def calibration(
    model: str,
    n: int,
    keys: int,
    searches: int,
    folder: Path | None,
    kinds: tuple[ReadingKind, ...],
    seed: int,
    output: Path | None,
    device: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Measure whether p-values are what they say, on images without a mark.

    Drawn scenes, images that the model makes, packaged photographs and your own images are read for random keys, as
    they are and after JPEG, a crop, resizing, noise and blur: whole, in parts (objects), and by searches. The fraction
    of readings with a p-value of at most a rate must not be above that rate. Intervals take the readings of one image
    together. With -o, an interrupted run goes on where it stopped.
    """
    from privgen.evaluation.calibration.evaluate import PICTURES, CalibrationPlan, evaluate_calibration
    from privgen.evaluation.record import check_output
    from privgen.hub import Placement
    from privgen.watermark.networks import Networks

    if output is not None:
        check_output(output, PICTURES, overwrite=overwrite)
    networks = Networks(model, Placement(device, "float32"))
    plan = CalibrationPlan(n, keys, searches, seed, folder, kinds or None)
    result = evaluate_calibration(networks, plan, folder=output)
    if output is not None:
        result.save(output, overwrite=overwrite)
    if as_json:
        echo(result.record(), as_json=True)
        return
    echo(
        [
            {"kind": kind, **{key: row[key] for key in ("images", "readings", "smallest")}}
            | {f"at {name}": rate.value for name, rate in row["rates"]["all"].items()}
            for kind, row in result.kinds.items()
        ]
    )
    echo({"above nominal": result.exceeded or "no rate"})
