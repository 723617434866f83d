"""``privgen attack``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from privgen.cli import options
from privgen.cli.errors import EXIT_FAILED
from privgen.cli.groups import Group
from privgen.cli.loading import quiet_loading
from privgen.cli.output import echo


if TYPE_CHECKING:
    from privgen.attacks import AttackedFile, BaseAttack


@click.group(
    cls=Group, epilog=options.examples("privgen attack list", "privgen attack run jpeg=50 photos -o attacked")
)
def attack() -> None:
    """Attack images as an adversary would."""


@attack.command("list", epilog=options.examples("privgen attack list", "privgen attack list --json"))
@options.json()
def list_(as_json: bool) -> None:
    """List the attacks, their units and the strengths of an evaluation.

    Kinds: D distortion, P purification or regeneration, A adaptive, M model side.
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
        "privgen attack run regeneration=60,model=mini photos -o attacked",
        "privgen attack run super_resolution=4,noise=0.1 photos -o attacked",
        "privgen attack run extractor_removal=4,steps=50 marked -o attacked",
        "privgen attack run averaging_forgery photos -o forged --marked collected --unmarked others",
    )
)
@click.argument("name", metavar="NAME[=STRENGTH]")
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE_OR_FOLDER...")
@options.output(required=True, help="Folder for the attacked images.")
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
@options.seed()
@options.json()
@options.overwrite()
def run(
    name: str,
    images: tuple[Path, ...],
    output: Path,
    seed: int,
    as_json: bool,
    overwrite: bool,
    **folders: Path | None,
) -> None:
    """Attack image files and write the results as PNG files of the same size.

    Without a strength, the middle of the attack's range is taken; parameters follow it as KEY=VALUE after commas.
    Attacks of those who have collected images of one key take folders of them; averaging and surrogate attacks work
    on these alone, extractor_removal and extractor_forgery with the extractor that a model ships.
    super_resolution needs `pip install 'privgen[super-resolution]'` or a model, neural_codec a file of weights as
    model.
    A run that was interrupted goes on where it stopped. A file that cannot be read is named, the rest is done, and
    the exit code is 1.
    """
    from privgen.attacks import parse_attack
    from privgen.errors import UsageError

    try:
        chosen = parse_attack(name, **{which: folder for which, folder in folders.items() if folder is not None})
    except ValueError as error:
        raise UsageError(str(error)) from error
    attack_and_report(chosen, images, output, seed=seed, as_json=as_json, overwrite=overwrite)


def attack_and_report(
    chosen: BaseAttack, images: tuple[Path, ...], output: Path, *, seed: int, as_json: bool, overwrite: bool
) -> None:
    """Attack files, name each on standard error and print the counts."""
    from privgen.attacks import ModelAttack, attack_files

    if isinstance(chosen, ModelAttack):
        quiet_loading()
    result = attack_files(chosen, images, output, seed=seed, overwrite=overwrite, report=_report)
    summary = {"attack": result.attack, "seed": seed, "output": result.output}
    counts = {status: result.count(status) for status in ("done", "skipped", "failed")}
    echo({**summary, **counts, "files": result.files} if as_json else {**summary, **counts}, as_json=as_json)
    if result.count("failed"):
        raise click.exceptions.Exit(EXIT_FAILED)


def _report(file: AttackedFile) -> None:
    if file.error:
        click.echo(f"{file.source}: {file.error}", err=True)
    else:
        click.echo(f"{file.source}: {file.status}", err=True)
