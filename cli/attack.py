"""``privgen attack``."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from privgen.cli import completion, options
from privgen.cli.errors import EXIT_FAILED
from privgen.cli.groups import Group
from privgen.cli.output import echo, say_others, write
from privgen.errors import printable


if TYPE_CHECKING:
    from privgen.attacks import AttackedFile, BaseAttack
    from privgen.io.batches import BatchOptions
    from privgen.io.metadata import Keeping


@click.group(
    cls=Group, epilog=options.examples("privgen attack list", "privgen attack run jpeg=50 photos -o attacked")
)
def attack() -> None:
    """Attack images as an adversary would, to see which marks survive."""


@attack.command("list", epilog=options.examples("privgen attack list", "privgen attack list --json"))
@options.json()
def list_(as_json: bool) -> None:
    """List the attacks, their units and the strengths of an evaluation.

    Kinds: D distortion, P purification or regeneration, A adaptive, M model side. At the strength under "identity" an
    attack changes nothing.
    """
    from privgen.attacks import list_attacks

    rows = [
        {"name": known.name, "kind": known.kind, "unit": known.unit, "sweep": known.sweep, "identity": known.identity}
        for known in list_attacks()
    ]
    echo(rows, as_json=as_json)


@attack.command(
    epilog=options.examples(
        "privgen attack run jpeg=50 photo.jpg -o attacked",
        "privgen attack run crop=0.5,place=centre photos -o attacked",
        "privgen attack run rotation=10 photos -o attacked --seed 1 --json",
        "privgen attack run whatsapp photos -o attacked",
        "privgen attack run 'aspect_crop,ratio=4:5 then jpeg=50' photos -o attacked",
        "privgen attack run regeneration=60,model=mini photos -o attacked",
        "privgen attack run diffpure=100,fit=tiles photo.jpg -o attacked",
        "privgen attack run super_resolution=4,noise=0.1 photos -o attacked",
        "privgen attack run extractor_removal=4,steps=50 marked -o attacked",
        "privgen attack run averaging_forgery photos -o forged --marked collected --unmarked others",
    )
)
@click.argument("text", metavar="NAME[=STRENGTH]", shell_complete=completion.attacks)
@options.images()
@options.output(required=True, metavar="DIR", help="Folder for the attacked images, or a PNG file.")
@click.option(
    "--marked",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="averaging, surrogate, extractor_forgery: images with one key's mark that the attacker has.",
)
@click.option(
    "--unmarked",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="averaging, surrogate: images without it that the attacker has.",
)
@options.recursive()
@options.max_pixels()
@options.metadata()
@options.seed()
@options.json()
@options.overwrite()
def run(
    text: str,
    images: tuple[Path, ...],
    output: Path,
    marked: Path | None,
    unmarked: Path | None,
    recursive: bool,
    max_pixels: int,
    metadata: Keeping,
    seed: int,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Attack image files and write the results as PNG files.

    Without a strength, an attack has the middle one of its range. Its other parameters follow as KEY=VALUE after
    commas. To do several attacks in a row, write "then" between them, and the whole in quotes.

    diffpure, gridpure, impress, regeneration, rinsing and vae work with a model of one size. If an image is larger,
    they attack a small copy, and add the enlarged change to the image. fit=tiles attacks overlapping tiles at full
    size instead, and fit=whole the image in one piece. If the work will take more than about 10 seconds, the command
    says how long before it begins.

    Most attacks keep the size of an image. Some change it, such as border, scale and whatsapp; these drop
    transparency.

    Averaging and surrogate attacks work on images that the attacker has collected: give folders of them.
    extractor_removal and extractor_forgery work with the extractor that a model carries. super_resolution needs
    `pip install 'privgen[super-resolution]'` or a model.

    If a file cannot be read, the command names it, does the rest, and exits with code 1. If a run was interrupted,
    repeat it: it skips the images that it has made already.
    """
    from privgen.io.batches import BatchOptions

    chosen = parse(text, marked=marked, unmarked=unmarked)
    batch = BatchOptions(
        overwrite=overwrite, progress=True, metadata=metadata, recursive=recursive, max_pixels=max_pixels
    )
    attack_and_report(chosen, images, output, seed=seed, batch=batch, as_json=as_json)


def parse(text: str, *, marked: Path | None = None, unmarked: Path | None = None) -> BaseAttack:
    """Return the attack that a user has written.

    Args:
        text: NAME, NAME=STRENGTH, and KEY=VALUE after commas; several of these with "then" between them.
        marked: images with a mark that the attacker has.
        unmarked: images without it.

    Raises:
        UsageError: there is no such attack, or it does not take these parameters.
    """
    from privgen.attacks import list_attacks, parse_attack
    from privgen.attacks.registry import JOINT, name_in
    from privgen.errors import UsageError

    known = [attack.name for attack in list_attacks()]
    for name in map(name_in, text.split(JOINT)):
        if name not in known:
            raise UsageError(f"There is no attack {name!r}; choose from {', '.join(known)}.")
    try:
        return parse_attack(text, marked=marked, unmarked=unmarked)
    except ValueError as error:
        raise UsageError(str(error)) from error


def attack_and_report(
    chosen: BaseAttack, images: tuple[Path, ...], output: Path, *, seed: int, batch: BatchOptions, as_json: bool
) -> None:
    """Attack files, name each on standard error, and print how many were done, skipped and failed."""
    from privgen.attacks import attack_files

    say = partial(click.echo, err=True)
    result = attack_files(chosen, images, output, seed=seed, batch=batch, report=_report, announce=say)
    say_others(images, recursive=batch.recursive)
    summary = {"attack": result.attack, "seed": seed, "output": result.output}
    counts = {status: result.count(status) for status in ("done", "skipped", "failed")}
    echo({**summary, **counts, "files": result.files} if as_json else {**summary, **counts}, as_json=as_json)
    if result.count("failed"):
        raise click.exceptions.Exit(EXIT_FAILED)


def _report(file: AttackedFile) -> None:
    write(printable(f"{file.source}: {file.error or file.status}"), err=True)
    for note in file.notes:
        write(printable(f"{file.source}: {note}"), err=True)
