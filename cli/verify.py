"""``privgen verify``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import click

from privgen.cli import completion, options
from privgen.cli.errors import EXIT_FAILED, EXIT_NOT_DETECTED
from privgen.cli.marks import fpr as fpr_option
from privgen.cli.marks import say
from privgen.cli.output import json_text, say_others, to_json, write


@click.command(
    epilog=options.examples(
        "privgen verify photo.jpg",
        "privgen verify photo.jpg --key alice --trust anchors.pem",
        "privgen verify found.webp --registry studio.db",
        "privgen verify published --recursive --json > origins.jsonl",
    )
)
@options.images()
@click.option(
    "--key",
    "names",
    multiple=True,
    metavar="FILE",
    shell_complete=completion.keys,
    help="Look for the mark of this key: key file, name of a key, or folder of key files; repeatable. By default, all "
    "keys in the folder of keys.",
)
@options.registry("Look for the marks of all keys of this registry, and say what it knows of their IDs.")
@fpr_option()
@click.option(
    "--search", is_flag=True, help="Also look for marks in images that were cropped, framed, scaled or turned."
)
@click.option("--locate", is_flag=True, help="Also look for marked objects.")
@click.option(
    "--trust",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    metavar="FILE",
    help="PEM file of the certificates whose signatures you trust, such as C2PA's trust list.",
)
@options.recursive()
@options.max_pixels()
@options.model()
@options.device()
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each image as soon as it is read.")
def verify(
    images: tuple[Path, ...],
    names: tuple[str, ...],
    registry: Path | None,
    fpr: float,
    search: bool,
    locate: bool,
    trust: Path | None,
    recursive: bool,
    max_pixels: int,
    model: str,
    device: str,
    as_json: bool,
) -> None:
    """Say what images prove of their origin: by Content Credentials, label and mark, and by all three together.

    Credentials prove who signed this very file. A mark proves whose key marked these pixels, and outlives the file.
    A label without a signature proves nothing.

    Exit codes: 0 each image has valid credentials or a mark, and neither speaks against it; 3 an image has not; 1 a
    file could not be read.
    """
    from privgen.errors import PrivgenError
    from privgen.io.files import iter_image_files, read_small
    from privgen.watermark.key import key_folder, load_keys

    pictures = iter_image_files(images, recursive=recursive)
    if not pictures:
        raise click.UsageError("Name at least one image.")
    own = key_folder()
    keys = load_keys(names or ([own] if registry is None and any(own.glob("*.key")) else []))
    from privgen.hub import Placement
    from privgen.watermark.networks import Networks
    from privgen.watermark.read.detection import Detector, DetectSpec
    from privgen.watermark.read.verify import verify_files
    from privgen.watermark.registry.registry import Registry

    try:
        anchors = None if trust is None else read_small(trust).decode("ascii")
    except (OSError, ValueError) as error:
        raise PrivgenError(f"{trust} cannot be read as a PEM file; check --trust.") from error
    spec = DetectSpec(fpr, search, locate=locate)
    failed = unproven = False
    with nullcontext() if registry is None else Registry.open(registry, write=False) as opened:
        every = [*keys, *(() if opened is None else opened.keys())]
        networks = Networks(model, Placement(device))
        detector = Detector(networks, every, spec, every=opened is None) if every else None
        for path, found, error_text in verify_files(
            pictures, detector, anchors=anchors, registry=opened, max_pixels=max_pixels
        ):
            if found is None:
                failed = True
                if as_json:
                    click.echo(json_text({"file": str(path), "error": error_text}))
                say(str(path), error_text, ())
                continue
            unproven |= not found.proven
            if as_json:
                click.echo(json_text(to_json(found.record())))
            else:
                write(str(found))
    say_others(images, recursive=recursive)
    if failed:
        raise click.exceptions.Exit(EXIT_FAILED)
    if unproven:
        raise click.exceptions.Exit(EXIT_NOT_DETECTED)
