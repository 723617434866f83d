"""``privgen watermark``."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from privgen.cli import options
from privgen.cli.errors import EXIT_FAILED, EXIT_NOT_DETECTED
from privgen.cli.generate import Request, takes_request
from privgen.cli.groups import Group
from privgen.cli.output import echo


if TYPE_CHECKING:
    from privgen.io.batches import BatchOptions
    from privgen.watermark.read.detect_files import DetectedFile
    from privgen.watermark.read.p_values import Test
    from privgen.watermark.write.embed_files import EmbeddedFile
    from privgen.watermark.write.mark_spec import Carrier


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

    A carrier writes the mark. The carrier `tile` adds a repeated pattern to the pixels; it needs no model. The carrier
    `latent` adds a pattern to the image's latents. The carrier `token` adds a learned word, which only the key's owner
    has, to the prompt late in denoising. `tile+latent` writes both in one image.
    """


def _carrier(default: str, text: str = "What writes the mark.") -> options.Decorator[Any]:
    kinds = click.Choice(["tile", "token", "latent", "tile+latent"])
    return click.option("--carrier", type=kinds, show_default=default, help=text)


@watermark.command(
    epilog=options.examples(
        'privgen watermark generate "a cat on a blue background" --key alice -o cat.png',
        'privgen watermark generate "a rocket on a red background" --key alice.key --carrier token -o rockets --n 8',
        'privgen watermark generate "a clock" --token alice.safetensors -o clock.png',
        'privgen watermark generate "a cat and a pineapple" --object cat=alice --object pineapple=bob -o two.png',
    )
)
@takes_request
@options.key(
    "Key file, or the name of a key: whose mark. With --object, the mark of all that is outside the objects.",
    required=False,
)
@click.option(
    "--object",
    "objects",
    multiple=True,
    metavar="NOUN=KEY",
    help="Mark the object that this word of the prompt names with a key; repeatable.",
)
@click.option(
    "--mask",
    "masks",
    multiple=True,
    metavar="NOUN=FILE",
    help="Image of the generated images' size that is light where the object is; by default the model's attention to "
    "the word says where it is. Repeatable.",
)
@click.option(
    "--token",
    "token_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the mark with this token of `privgen token`, not with the one that the model makes for the key.",
)
@_carrier("the model's own choice")
@click.option(
    "--tau",
    type=click.FloatRange(0, 1000),
    show_default="what suits the carrier",
    help="The mark acts on timesteps up to this one, of 1000.",
)
@click.option(
    "--psnr",
    type=click.FloatRange(20, 60),
    show_default="42 for a tile, 31 to 37 inside objects",
    metavar="DB",
    help="Quality of tiles; higher is fainter.",
)
@options.robust_steps()
def generate(
    request: Request,
    key: str | None,
    objects: tuple[str, ...],
    masks: tuple[str, ...],
    token_file: Path | None,
    carrier: Carrier | None,
    tau: float | None,
    psnr: float | None,
    robust_steps: int,
) -> None:
    """Generate images of what PROMPT says that carry a key's mark, or in which objects carry marks of their own.

    With the same seed, they are the images of `privgen generate`, but for the mark.
    """
    if key is None and token_file is None and not objects:
        raise click.UsageError("Say whose mark: give --key, --token or --object.")
    if masks and not objects:
        raise click.UsageError("--mask needs --object: say whose the object is.")
    owners, files = options.named(objects, "--object"), options.named(masks, "--mask")
    from privgen.watermark.key import load_key

    owner = None if key is None else load_key(key)
    from privgen.watermark.token import Token
    from privgen.watermark.write.mark_spec import KeyMark, MarkSpec

    token = None if token_file is None else Token.load(token_file)
    spec = MarkSpec(carrier, psnr, tau=tau, robust_steps=robust_steps)
    if owners:
        from privgen.watermark.objects.keys import ObjectKeys
        from privgen.watermark.objects.masks import open_mask

        keys = {noun: load_key(name) for noun, name in owners.items()}
        opened = {noun: open_mask(file) for noun, file in files.items()}
        request.run(mark=KeyMark(None, spec, token, ObjectKeys(keys, opened, owner, psnr)))
        _hint_locate(str(request.output), owners.values())
        return
    request.run(mark=KeyMark(owner, spec, token))
    _hint_detect(request.output, "KEY" if key is None else key, request.model)


@watermark.command(
    epilog=options.examples(
        "privgen watermark embed photo.jpg --key alice -o marked",
        "privgen watermark embed photos --key alice.key -o marked --psnr 44 --json",
        "privgen watermark embed photo.jpg --object cat=alice --mask cat=cat.png -o marked",
    )
)
@options.images()
@options.output(required=True, metavar="DIR", help="Folder for the marked images; it must not hold the inputs.")
@options.key(
    "Key file, or the name of a key: whose mark. With objects, the mark of all that is outside.", required=False
)
@click.option(
    "--object",
    "objects",
    multiple=True,
    metavar="NAME=KEY",
    help="Mark an object of one image with a key; repeatable. The name is yours; --mask says where the object is.",
)
@click.option(
    "--mask",
    "masks",
    multiple=True,
    metavar="NAME=FILE",
    help="Image that is light where the object of that name is, and dark elsewhere; repeatable.",
)
@_carrier("tile+latent, or tile where the model has no networks for it")
@click.option(
    "--psnr",
    type=click.FloatRange(20, 60),
    show_default="42 with a tile, 38.1 without, 31 to 37 inside masks",
    metavar="DB",
    help="Quality of the marked image; higher is fainter.",
)
@click.option(
    "--known",
    "known",
    multiple=True,
    metavar="KEY",
    help="Say so if an image carries the mark of this key already; repeatable. Several marks fit in one image.",
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
@options.seed("Seed of the noise that the carrier token works through.")
@options.model()
@options.device()
@options.dtype()
@options.json()
@options.overwrite()
def embed(
    images: tuple[Path, ...],
    output: Path,
    key: str | None,
    objects: tuple[str, ...],
    masks: tuple[str, ...],
    carrier: Carrier | None,
    psnr: float | None,
    known: tuple[str, ...],
    kind: Literal["png", "same"],
    robust_steps: int,
    seed: int,
    model: str,
    device: str,
    dtype: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Mark existing images; they keep their size, transparency and precision.

    Each mark is read back. The command says so if an image is too small or too plain to carry one, or carries a mark
    of the key already.

    With --object and --mask, objects of one image get marks of their own. Outside the masks, nothing changes.

    If a file cannot be read or written, the command names it, does the rest, and exits with code 1. If a run was
    interrupted, repeat it: it skips the images that it has made already.
    """
    if key is None and not objects:
        raise click.UsageError("Say whose mark: give --key, or --object and --mask.")
    if masks and not objects:
        raise click.UsageError("--mask needs --object: say whose the object is.")
    from privgen.io.batches import BatchOptions
    from privgen.watermark.key import load_key

    batch = BatchOptions(overwrite=overwrite, progress=True, keep_format=kind == "same")
    if objects:
        if len(images) != 1 or carrier not in (None, "tile") or robust_steps or known:
            raise click.UsageError(
                "--object marks one image, with tiles; leave --carrier, --robust-steps, --known out."
            )
        owners = options.named(objects, "--object")
        _embed_objects(images[0], output, owners, options.named(masks, "--mask"), key, psnr, batch, as_json=as_json)
        return
    assert key is not None  # checked above
    owner = load_key(key)
    from privgen.hub import Placement
    from privgen.watermark.networks import Networks
    from privgen.watermark.write.embed_files import embed_files
    from privgen.watermark.write.mark_spec import MarkSpec

    result = embed_files(
        images,
        output,
        owner,
        networks=Networks(model, Placement(device, dtype)),
        spec=MarkSpec(carrier, psnr, robust_steps=robust_steps, seed=seed),
        batch=batch,
        known=[load_key(name) for name in known],
        report=_report_embedded,
    )
    record = {"key": result.key, "key_id": result.key_id, "carrier": result.carrier, "output": result.output}
    counts = {status: result.count(status) for status in ("done", "skipped", "failed")}
    echo({**record, **counts, **({"files": result.files} if as_json else {})}, as_json=as_json)
    if result.count("failed") < len(result.files):
        _hint_detect(output, key, model)
    if result.count("failed"):
        raise click.exceptions.Exit(EXIT_FAILED)


def _embed_objects(
    image: Path,
    output: Path,
    owners: dict[str, str],
    masks: dict[str, str],
    rest: str | None,
    psnr: float | None,
    batch: BatchOptions,
    *,
    as_json: bool,
) -> None:
    """Mark the objects of one image, and say what became of them."""
    from privgen.watermark.key import load_key
    from privgen.watermark.objects.embed_file import embed_objects

    keys = {name: load_key(key) for name, key in owners.items()}
    around = None if rest is None else load_key(rest)
    result = embed_objects(image, output, keys, masks, rest=around, psnr=psnr, batch=batch)
    notes = [f"{item.name}: {item.note}" for item in result.objects if item.note]
    _say(result.source, None, (*result.notes, *notes))
    if as_json:
        echo(result, as_json=True)
    else:
        names = ("name", "key", "area", "object_psnr", "matches", "p_value")
        echo([{name: getattr(item, name) for name in names} for item in result.objects])
    _hint_locate(result.output, owners.values())


@watermark.command(
    epilog=options.examples(
        "privgen watermark detect photo.png --key alice",
        "privgen watermark detect marked --key alice --key bob --fpr 1e-9",
        "privgen watermark detect marked --key alice.key bob.key --json",
        "privgen watermark detect cropped.png --key alice --search",
        "privgen watermark detect photo.png --key alice --key bob --locate --save-overlay owners",
    )
)
@options.images()
@click.option(
    "--key",
    "names",
    multiple=True,
    required=True,
    metavar="FILE",
    help="Key file, or the name of a key; repeatable. Files *.key among the images are keys, too.",
)
@click.option(
    "--fpr",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=1e-6,
    show_default=True,
    help="Probability that an unmarked image is called marked, whatever the number of keys.",
)
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
@_carrier("all that the model can read", "Look for marks of this carrier only.")
@click.option(
    "--test",
    type=click.Choice(["weighted", "binomial"]),
    default="weighted",
    show_default=True,
    help="Of the extractor's bits: weighted goes by how clearly each is read; binomial counts those that agree.",
)
@options.model()
@options.device()
@options.json()
@options.overwrite()
def detect(
    images: tuple[Path, ...],
    names: tuple[str, ...],
    fpr: float,
    search: bool,
    locate: bool,
    overlays: Path | None,
    carrier: Carrier | None,
    test: Test,
    model: str,
    device: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Say whose mark images carry, and with --locate, which part of an image belongs to which key.

    Exit codes: 0 every image carries the mark of one of the keys, 3 an image does not, 1 a file could not be read.
    With --json, one object for each image, with all keys under `keys`.
    """
    if overlays is not None and not locate:
        raise click.UsageError("--save-overlay needs --locate.")
    from privgen.watermark.key import load_key

    keys = [load_key(name) for name in (*names, *(str(path) for path in images if path.suffix == ".key"))]
    pictures = [path for path in images if path.suffix != ".key"]
    if not pictures:
        raise click.UsageError("Name at least one image.")
    from privgen.hub import Placement
    from privgen.watermark.networks import Networks
    from privgen.watermark.read.detect_files import Overlays, detect_files
    from privgen.watermark.read.detection import DetectSpec

    found = detect_files(
        pictures,
        keys,
        networks=Networks(model, Placement(device)),
        spec=DetectSpec(fpr, search, test, carrier, locate),
        progress=True,
        overlays=None if overlays is None else Overlays(overlays, overwrite),
        report=lambda file: _report_detected(file, as_json=as_json),
    )
    if as_json:
        echo([file.record() for file in found], as_json=True)
    else:
        text = f"p: how likely an image without the mark matches so well. An image is marked if p <= {fpr:g}."
        click.echo(text, err=True)
        if not locate and any(file.detection is not None and not file.detected for file in found):
            click.echo("Hint: --locate also looks for marked objects.", err=True)
        if not search and any(file.detection is not None and not file.detected for file in found):
            click.echo("Hint: --search also looks for marks in images that were cropped, framed or turned.", err=True)
    if any(file.error for file in found):
        raise click.exceptions.Exit(EXIT_FAILED)
    if not all(file.detected for file in found):
        raise click.exceptions.Exit(EXIT_NOT_DETECTED)


def _report_detected(file: DetectedFile, *, as_json: bool) -> None:
    _say(file.file, file.error, file.notes)
    if not as_json and file.detection is not None:
        click.echo(f"{file.file}: {file.detection}")


def _report_embedded(file: EmbeddedFile) -> None:
    _say(file.source, file.error, file.notes)


def _say(name: str, error: str | None, notes: tuple[str, ...]) -> None:
    """Say on standard error what you should know of one file."""
    if error:
        click.echo(f"Error: {error if name in error else f'{name}: {error}'}", err=True)
    for note in notes:
        click.echo(f"{name}: {note}", err=True)


def _hint_detect(target: Path, key: str, model: str) -> None:
    words = ["privgen", "watermark", "detect", str(target), "--key", key]
    words += [] if model == "mini" else ["--model", model]
    click.echo(f"Hint: {shlex.join(words)}", err=True)


def _hint_locate(target: str, keys: Iterable[str]) -> None:
    words = ["privgen", "watermark", "detect", target, "--locate"]
    words += [word for key in dict.fromkeys(keys) for word in ("--key", key)]
    click.echo(f"Hint: {shlex.join(words)}", err=True)
