"""``privgen watermark detect``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from privgen.cli import completion, options
from privgen.cli.detections import printer
from privgen.cli.errors import EXIT_FAILED, EXIT_NOT_DETECTED
from privgen.cli.marks import carrier as carrier_option
from privgen.cli.marks import fpr as fpr_option
from privgen.cli.marks import say, say_effort
from privgen.cli.output import say_others


if TYPE_CHECKING:
    from privgen.watermark.read.detect_files import DetectedFile
    from privgen.watermark.read.p_values import Test
    from privgen.watermark.write.mark_spec import Carrier


@click.command(
    epilog=options.examples(
        "privgen watermark detect photo.png --key alice",
        "privgen watermark detect marked --key alice --key bob --fpr 1e-9",
        "privgen watermark detect marked --key alice.key bob.key --json",
        "privgen watermark detect marked --key keys --csv > owners.csv",
        "privgen watermark detect marked --registry studio.db",
        "privgen watermark detect cropped.png --key alice --search",
        "privgen watermark detect photo.png --key alice --key bob --locate --save-overlay owners",
    )
)
@options.images()
@click.option(
    "--key",
    "names",
    multiple=True,
    metavar="FILE",
    shell_complete=completion.keys,
    help="Key file, name of a key, or folder of key files; repeatable. Files *.key among the images are keys, too.",
)
@options.registry("Look for all keys of this registry, too, and say what it knows of the marks that are found.")
@fpr_option()
@click.option(
    "--search",
    is_flag=True,
    help="Also look for marks in images that were cropped, framed, scaled or turned; this takes a second or more an "
    "image.",
)
@click.option(
    "--locate",
    is_flag=True,
    help="Also look for marked objects, and say which part of the image belongs to which key.",
)
@click.option(
    "--save-overlay",
    "overlays",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="With --locate: folder for pictures that show who owns what.",
)
@carrier_option("all that the model can read", "Look for marks of this carrier only.")
@click.option(
    "--test",
    type=click.Choice(["weighted", "binomial"]),
    default="weighted",
    show_default=True,
    help="Of the extractor's bits: weighted goes by how clearly each is read; binomial counts those that agree.",
)
@options.model()
@options.device()
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each image as soon as it is read.")
@click.option(
    "--csv", "as_csv", is_flag=True, help="Print rows of CSV, one for each region, as soon as they are read."
)
@options.recursive()
@options.max_pixels()
@options.overwrite()
def detect(
    images: tuple[Path, ...],
    names: tuple[str, ...],
    registry: Path | None,
    fpr: float,
    search: bool,
    locate: bool,
    overlays: Path | None,
    carrier: Carrier | None,
    test: Test,
    model: str,
    device: str,
    as_json: bool,
    as_csv: bool,
    recursive: bool,
    max_pixels: int,
    overwrite: bool,
) -> None:
    """Say whose mark images carry, and with --locate, which part of an image belongs to which key.

    One image gets a sentence, several get a table. Each line is printed as soon as its image is read, so nothing is
    lost if you stop the command. With --json, a line has all keys under `keys`; of a registry, only those that are
    detected, and the best.

    Exit codes: 0 every image carries the mark of one of the keys, 3 an image does not, 1 a file could not be read.
    """
    if overlays is not None and not locate:
        raise click.UsageError("--save-overlay needs --locate.")
    if as_json and as_csv:
        raise click.UsageError("Give --json or --csv, not both.")
    from privgen.io.files import iter_image_files
    from privgen.watermark.key import load_keys

    given: list[str | Path] = [*names, *(path for path in images if path.suffix == ".key")]
    if not given and registry is None:
        raise click.UsageError("Say whose marks to look for: give --key or --registry.")
    keys = load_keys(given)
    places = [path for path in images if path.suffix != ".key"]
    pictures = iter_image_files(places, recursive=recursive)
    if not pictures:
        raise click.UsageError("Name at least one image.")
    from privgen.hub import Placement
    from privgen.watermark.networks import Networks
    from privgen.watermark.read.detect_files import Overlays, detect_files
    from privgen.watermark.read.detection import DetectSpec
    from privgen.watermark.registry.registry import Registry

    show = printer("json" if as_json else "csv" if as_csv else "text", pictures)

    def report(file: DetectedFile) -> None:
        say(file.file, file.error, file.notes)
        show(file)

    with nullcontext() if registry is None else Registry.open(registry, write=False) as opened:
        if search:
            say_effort(len(keys) + (0 if opened is None else len(opened.list())), locate=locate)
        found = detect_files(
            pictures,
            keys,
            networks=Networks(model, Placement(device)),
            spec=DetectSpec(fpr, search, test, carrier, locate),
            progress=True,
            overlays=None if overlays is None else Overlays(overlays, overwrite),
            max_pixels=max_pixels,
            report=report,
            registry=opened,
        )
    say_others(places, recursive=recursive)
    if not (as_json or as_csv):
        text = f"p: how likely an image without the mark matches so well. An image is marked if p <= {fpr:g}."
        click.echo(text, err=True)
        if not all(file.detected for file in found if file.detection is not None):
            if not locate:
                click.echo("Hint: --locate also looks for marked objects.", err=True)
            if not search:
                click.echo(
                    "Hint: --search also looks for marks in images that were cropped, framed or turned.", err=True
                )
    if any(file.error for file in found):
        raise click.exceptions.Exit(EXIT_FAILED)
    if not all(file.detected for file in found):
        raise click.exceptions.Exit(EXIT_NOT_DETECTED)
