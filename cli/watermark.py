"""``privgen watermark``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from privgen.cli import options
from privgen.cli.errors import EXIT_FAILED, EXIT_NOT_DETECTED
from privgen.cli.generate import generation_options, run, summary
from privgen.cli.groups import Group
from privgen.cli.loading import quiet_loading
from privgen.cli.output import echo


if TYPE_CHECKING:
    from privgen.watermark.read.detect_files import DetectedFile
    from privgen.watermark.write.embed_files import EmbeddedFile


@click.group(
    cls=Group,
    epilog=options.examples(
        "privgen key new alice",
        'privgen watermark generate "a cat on a blue background" --key alice -o cat.png',
        "privgen watermark embed photos --key alice -o marked",
        "privgen watermark detect cat.png marked --key alice",
    ),
)
def watermark() -> None:
    """Mark images with a key, and detect whose mark an image carries.

    The carrier says what a mark is written with: `token`, words that only the key's owner can say, added to the
    prompt late in denoising; or `latent`, a pattern added to the image's latents.
    """


def _key(**overrides: Any) -> Any:
    settings = {"required": True, "metavar": "FILE", "help": "Key file, or the name of a key: whose mark."}
    return click.option("--key", **{**settings, **overrides})


def _carrier() -> Any:
    kinds = click.Choice(["token", "latent"])
    text = "What the mark is written with."
    return click.option("--carrier", type=kinds, show_default="what suits the model", help=text)


_images = click.argument(
    "images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE_OR_FOLDER..."
)


@watermark.command(
    epilog=options.examples(
        'privgen watermark generate "a cat on a blue background" --key alice -o cat.png',
        'privgen watermark generate "a rocket on a red background" --key alice.key --carrier token -o rockets --n 8',
    )
)
@generation_options
@_key()
@_carrier()
@click.option(
    "--tau",
    type=click.FloatRange(0, 1000),
    show_default="what suits the carrier",
    help="The mark acts on timesteps up to this one, of 1000.",
)
@options.robust_steps()
def generate(key: str, as_json: bool, **chosen: Any) -> None:
    """Generate images of what PROMPT says that carry a key's mark.

    With the same seed they are the images of `privgen generate`, but for the mark.
    """
    from privgen.watermark.key import load_key

    result = run(key=load_key(key), **chosen)
    echo(result if as_json else summary(result), as_json=as_json)
    _hint("detect", chosen["output"], key=key, model=chosen["model"])


@watermark.command(
    epilog=options.examples(
        "privgen watermark embed photo.jpg --key alice -o marked",
        "privgen watermark embed photos --key alice.key -o marked --psnr 42 --json",
    )
)
@_images
@options.output(required=True, metavar="DIR", help="Folder for the marked images; not one that inputs come from.")
@_key()
@_carrier()
@click.option(
    "--psnr",
    "psnr_db",
    type=click.FloatRange(20, 60),
    default=38.1,
    show_default=True,
    metavar="DB",
    help="Quality: higher is fainter.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["png", "same"]),
    default="png",
    show_default=True,
    help="Format to write: PNG, which loses nothing, or that of the source where possible.",
)
@options.robust_steps()
@options.seed()
@options.model()
@options.device()
@options.dtype()
@options.json()
@options.overwrite()
def embed(images: tuple[Path, ...], output: Path, key: str, kind: str, as_json: bool, **chosen: Any) -> None:
    """Mark existing images; they keep size, transparency and precision.

    A file that cannot be read or written is named, the rest is done, and the exit code is 1. A run that was
    interrupted goes on where it stopped.
    """
    from privgen.watermark.key import load_key

    owner = load_key(key)
    quiet_loading()
    from privgen.watermark.write.embed_files import embed_files

    result = embed_files(images, output, owner, keep_format=kind == "same", progress=True, report=_report, **chosen)
    record = {"key": result.key, "key_id": result.key_id, "carrier": result.carrier, "output": result.output}
    counts = {status: result.count(status) for status in ("done", "skipped", "failed")}
    echo({**record, **counts, **({"files": result.files} if as_json else {})}, as_json=as_json)
    if result.count("failed") < len(result.files):
        _hint("detect", output, key=key, model=chosen["model"])
    if result.count("failed"):
        raise click.exceptions.Exit(EXIT_FAILED)


@watermark.command(
    epilog=options.examples(
        "privgen watermark detect photo.png --key alice",
        "privgen watermark detect marked --key alice --key bob --fpr 1e-9",
        "privgen watermark detect marked --key alice.key bob.key --json",
    )
)
@_images
@_key(multiple=True, help="Key file, or the name of a key; repeatable, and *.key among the images are keys too.")
@click.option(
    "--fpr",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=1e-6,
    show_default=True,
    help="Probability that an unmarked image may be called marked, whatever the number of keys.",
)
@click.option(
    "--search",
    is_flag=True,
    help="Find marks in images that were cropped (half of the area kept, or more), turned or both: seconds an image.",
)
@click.option(
    "--test",
    type=click.Choice(["weighted", "binomial"]),
    default="weighted",
    show_default=True,
    help="Go by how clearly each bit is read, or count the bits that agree.",
)
@options.seed(help="Changes nothing: reading draws no random numbers.")
@options.model()
@options.device()
@options.dtype()
@options.json()
def detect(
    images: tuple[Path, ...], key: tuple[str, ...], fpr: float, as_json: bool, seed: int, **chosen: Any
) -> None:
    """Say whose mark images carry.

    Exit codes: 0 every image carries the mark of a given key, 3 some or none does, 1 a file could not be read.
    With --json, one object for each image: the key that matches best, and under `keys` all of them.
    """
    from privgen.watermark.key import load_key

    keys = [load_key(name) for name in (*key, *(str(path) for path in images if path.suffix == ".key"))]
    pictures = [path for path in images if path.suffix != ".key"]
    if not pictures:
        raise click.UsageError("Name at least one image.")
    quiet_loading()
    from privgen.watermark.read.detect_files import detect_files

    def report(file: DetectedFile) -> None:
        _report(file)
        if not as_json and file.error is None:
            click.echo(_verdict(file))

    found = detect_files(pictures, keys, fpr=fpr, progress=True, report=report, **chosen)
    if as_json:
        echo(found, as_json=True)
    else:
        click.echo(f"p: how likely an image without the mark matches so well. Marked means p <= {fpr:g}.", err=True)
        if not (chosen["search"] or all(file.detected or file.error for file in found)):
            click.echo("Hint: --search also looks for marks in images that were cropped or turned.", err=True)
    if any(file.error for file in found):
        raise click.exceptions.Exit(EXIT_FAILED)
    if not all(file.detected for file in found):
        raise click.exceptions.Exit(EXIT_NOT_DETECTED)


def _verdict(file: DetectedFile) -> str:
    """One image in words."""
    candidates = len(file.keys)
    corrected = f" for {candidates} keys" if candidates > 1 else ""
    figures = f"{file.matches} of {file.n_bits} bits, p = {file.p_adjusted:.2g}{corrected}"
    if file.pose:
        figures += f"; it shows {file.pose}"
    if file.detected:
        marks = [match.key for match in file.keys if match.detected]
        also = f"; also of {', '.join(name for name in marks if name != file.key)}" if len(marks) > 1 else ""
        return f"{file.file}: carries the mark of key {file.key}: {figures}{also}"
    which = (
        f"the mark of key {file.key}" if candidates == 1 else f"a mark of the {candidates} keys; best is {file.key}"
    )
    return f"{file.file}: does not carry {which}: {figures}"


def _report(file: EmbeddedFile | DetectedFile) -> None:
    """What a user should know of one file, on standard error."""
    name = getattr(file, "source", None) or getattr(file, "file", None)
    if file.error:
        click.echo(f"Error: {file.error if str(name) in file.error else f'{name}: {file.error}'}", err=True)
    for note in file.notes:
        click.echo(f"{name}: {note}", err=True)


def _hint(command: str, target: Path, *, key: str, model: str) -> None:
    import shlex

    words = [
        "privgen",
        "watermark",
        command,
        str(target),
        "--key",
        key,
        *(["--model", model] if model != "mini" else []),
    ]
    click.echo(f"Hint: {shlex.join(words)}", err=True)
