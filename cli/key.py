"""``privgen key``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from privgen.cli import options
from privgen.cli.errors import EXIT_FAILED
from privgen.cli.groups import Group
from privgen.cli.output import echo, write
from privgen.errors import PrivgenError, printable


if TYPE_CHECKING:
    from privgen.watermark.key import Key


@click.group(cls=Group, epilog=options.examples("privgen key new alice", "privgen key list", "privgen key show alice"))
def key() -> None:
    """Make and show keys.

    A key's name finds its file in ~/.config/privgen/keys, or in the folder that PRIVGEN_KEYS names. Whoever has the
    file of a key can mark images with it and find its marks: keep it private, and keep a copy.
    """


@key.command(epilog=options.examples("privgen key new alice", "privgen key new alice -o alice.key"))
@click.argument("name")
@options.output(help="File to write, or a folder for it; by default the folder of keys.")
@options.json()
def new(name: str, output: Path | None, as_json: bool) -> None:
    """Make a key called NAME.

    Only you may read its file. Keys are never overwritten.
    """
    from privgen.watermark.key import Key

    _save(Key.new(name), output, as_json=as_json)


@key.command(epilog=options.examples("privgen key show alice", "privgen key show alice.key --json"))
@click.argument("file_or_name")
@options.json()
def show(file_or_name: str, as_json: bool) -> None:
    """Print what everybody may know of a key; never its secret."""
    from privgen.watermark.key import load_key

    echo(load_key(file_or_name).public(), as_json=as_json)


@key.command(
    epilog=options.examples(
        "privgen key derive studio user/alice", "privgen key derive studio.key image/2026/17 -o image.key"
    )
)
@click.argument("file_or_name")
@click.argument("label")
@click.option("--name", metavar="NAME", help="Of the new key; by default the label, with dots for slashes.")
@options.output(help="File to write, or a folder for it; by default the folder of keys.")
@options.json()
def derive(file_or_name: str, label: str, name: str | None, output: Path | None, as_json: bool) -> None:
    """Make the key that belongs to a key and LABEL.

    It is always the same one, so you need to keep only the key that it is derived from. Who has a derived key learns
    nothing about the other key, nor about keys of other labels.
    """
    from privgen.watermark.key import load_key

    _save(load_key(file_or_name).derive(label, name), output, as_json=as_json)


@key.command("list", epilog=options.examples("privgen key list", "privgen key list --json"))
@options.json()
def list_(as_json: bool) -> None:
    """List the keys in the folder of keys."""
    from privgen.watermark.key import SUFFIX, Key, key_folder

    records, failed = [], False
    for path in sorted(key_folder().glob(f"*{SUFFIX}")):
        try:
            records.append({**Key.load(path).public(), "file": path})
        except PrivgenError as error:
            failed = True
            write(printable(f"Error: {error}"), err=True)
    echo(records, as_json=as_json)
    if not records and not failed and not as_json:
        write(f"No keys in {key_folder()}; `privgen key new NAME` makes one.", err=True)
    if failed:
        raise click.exceptions.Exit(EXIT_FAILED)


def _save(made: Key, output: Path | None, *, as_json: bool) -> None:
    """Write a new key, and print what everybody may know of it."""
    from privgen.watermark.key import SUFFIX, default_path

    if output is None:
        output = default_path(made.name)
    elif output.is_dir():
        output /= f"{made.name}{SUFFIX}"
    echo({**made.public(), "file": made.save(output)}, as_json=as_json)
