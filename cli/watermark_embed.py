"""``privgen watermark embed``."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from privgen.cli import completion, options, sealing
from privgen.cli.errors import EXIT_FAILED
from privgen.cli.marks import carrier as carrier_option
from privgen.cli.marks import hint_detect, hint_locate, say
from privgen.cli.marks import payload as payload_option
from privgen.cli.output import echo, say_others


if TYPE_CHECKING:
    from privgen.io.metadata import Keeping
    from privgen.provenance.label import Preset
    from privgen.watermark.objects.embed_file import EmbeddedObjects
    from privgen.watermark.write.embed_files import EmbeddedFile
    from privgen.watermark.write.mark_spec import Carrier


@click.command(
    epilog=options.examples(
        "privgen watermark embed photo.jpg --key alice -o marked",
        "privgen watermark embed photos --key alice.key -o marked --psnr 44 --json",
        "privgen watermark embed photo.jpg --key alice -o marked --payload 1234",
        'privgen watermark embed photos --registry studio.db --key alice --issued-for "client 17" -o marked',
        "privgen watermark embed photo.jpg --object cat=alice --mask cat=cat.png -o marked",
    )
)
@options.images()
@options.output(
    required=True,
    metavar="DIR",
    help="Folder for the marked images; it must not hold the inputs. Or, for one image, the file to write.",
)
@options.key(
    "Key file, or the name of a key: whose mark. With objects, the mark of all that is outside.", required=False
)
@click.option(
    "--object",
    "objects",
    multiple=True,
    metavar="NAME=KEY",
    shell_complete=completion.keys_after_name,
    help="Mark an object of one image with a key; repeatable. The name is yours; --mask says where the object is.",
)
@click.option(
    "--mask",
    "masks",
    multiple=True,
    metavar="NAME=FILE",
    help="Image that is light where the object of that name is, and dark elsewhere; repeatable.",
)
@carrier_option("tile+latent, or tile where the model has no networks for it")
@click.option(
    "--psnr",
    type=click.FloatRange(20, 60),
    show_default="42 with a tile, 38.1 without, 31 to 37 inside masks",
    metavar="DB",
    help="Quality of the marked image; higher is fainter.",
)
@payload_option()
@options.registry(
    "Issue an ID from this registry for each image, and write it as the payload. --key is then a key of the registry."
)
@options.issued_for("--issued-for")
@click.option(
    "--known",
    "known",
    multiple=True,
    metavar="KEY",
    shell_complete=completion.keys,
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
@options.recursive()
@options.max_pixels()
@options.metadata()
@options.quality()
@sealing.sign()
@sealing.label()
@sealing.say()
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
    payload: int | None,
    registry: Path | None,
    note: str | None,
    user: str | None,
    known: tuple[str, ...],
    kind: Literal["png", "same"],
    recursive: bool,
    max_pixels: int,
    metadata: Keeping,
    quality: int | None,
    sign: str | None,
    label: Preset | None,
    said: tuple[str, ...],
    robust_steps: int,
    seed: int,
    model: str,
    device: str,
    dtype: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Mark existing images; they keep their size, transparency and precision.

    Each mark is read back. The command says so if an image is too small or too plain to carry one, or its payload, or
    carries a mark of the key already.

    With --object and --mask, objects of one image get marks of their own. Outside the masks, nothing changes.

    If a file cannot be read or written, the command names it, does the rest, and exits with code 1. If a run was
    interrupted, repeat it: it skips the images that it has made already. With --registry, it also gives each image the
    ID that it got before.
    """
    if key is None and not objects:
        raise click.UsageError("Say whose mark: give --key, or --object and --mask.")
    options.check_registry(registry, key, (note, user), excluded=bool(objects) or payload is not None)
    if masks and not objects:
        raise click.UsageError("--mask needs --object: say whose the object is.")
    options.check_quality(quality, kind, output)
    from privgen.io.batches import BatchOptions
    from privgen.watermark.key import load_key

    batch = BatchOptions(
        overwrite=overwrite,
        progress=True,
        keep_format=kind == "same",
        metadata=metadata,
        quality=quality,
        recursive=recursive,
        seal=sealing.seal_of(sign, label, said),
        max_pixels=max_pixels,
    )
    if objects:
        if len(images) != 1 or carrier == "tile+latent" or robust_steps or known:
            raise click.UsageError(
                "--object marks one image, with the carrier tile, latent or token; leave --robust-steps and --known "
                "out."
            )
        from privgen.hub import Placement
        from privgen.watermark.networks import Networks
        from privgen.watermark.objects.choose import object_carrier
        from privgen.watermark.objects.embed_file import embed_objects

        owners, files = options.named(objects, "--object"), options.named(masks, "--mask")
        keys = {name: load_key(owner) for name, owner in owners.items()}
        made = embed_objects(
            images[0],
            output,
            keys,
            files,
            rest=None if key is None else load_key(key),
            psnr=psnr,
            batch=batch,
            carrier=object_carrier(carrier or "tile", Networks(model, Placement(device, dtype)), payload),
        )
        _report_objects(made, owners, carrier, as_json=as_json)
        return
    assert key is not None  # checked above
    from privgen.hub import Placement
    from privgen.watermark.networks import Networks
    from privgen.watermark.registry.issuer import Issuer
    from privgen.watermark.registry.registry import Registry
    from privgen.watermark.registry.values import IssuedFor
    from privgen.watermark.write.embed_files import embed_files
    from privgen.watermark.write.mark_spec import MarkSpec

    with nullcontext() if registry is None else Registry.open(registry) as opened:
        result = embed_files(
            images,
            output,
            load_key(key) if opened is None else Issuer(opened, key, IssuedFor(note, user=user)),
            networks=Networks(model, Placement(device, dtype)),
            spec=MarkSpec(carrier, psnr, robust_steps=robust_steps, seed=seed, payload=payload),
            batch=batch,
            known=[load_key(name) for name in known],
            report=_report_embedded,
        )
    say_others(images, recursive=recursive)
    record = {"key": result.key, "key_id": result.key_id, "carrier": result.carrier, "output": result.output}
    counts = {status: result.count(status) for status in ("done", "skipped", "failed")}
    echo({**record, **counts, **({"files": result.files} if as_json else {})}, as_json=as_json)
    if result.count("failed") < len(result.files):
        where, option = (key, "--key") if registry is None else (str(registry), "--registry")
        hint_detect(output, where, model, recursive=recursive, option=option)
    if result.count("failed"):
        raise click.exceptions.Exit(EXIT_FAILED)


def _report_objects(
    result: EmbeddedObjects, owners: dict[str, str], carrier: Carrier | None, *, as_json: bool
) -> None:
    """Say what became of the objects of one image."""
    notes = [f"{item.name}: {item.note}" for item in result.objects if item.note]
    say(result.source, None, (*result.notes, *notes))
    if as_json:
        echo(result, as_json=True)
    else:
        names = ("name", "key", "area", "object_psnr", "matches", "p_value")
        echo([{name: getattr(item, name) for name in names} for item in result.objects])
    hint_locate(result.output, owners.values(), carrier)


def _report_embedded(file: EmbeddedFile) -> None:
    say(file.source, file.error, file.notes)
