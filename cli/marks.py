"""What the commands of ``privgen watermark`` share: the option for the carrier, and what they say."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from privgen.cli import options


def carrier(default: str, text: str = "What writes the mark.") -> options.Decorator[Any]:
    """The option --carrier.

    Args:
        default: what is done without it, in words.
        text: what it does.
    """
    kinds = click.Choice(["tile", "token", "latent", "tile+latent"])
    return click.option("--carrier", type=kinds, show_default=default, help=text)


def payload() -> options.Decorator[Any]:
    """The option --payload."""
    text = "A number of yours, such as the image's in your catalogue, that the tile carries besides the key's mark."
    return click.option("--payload", type=click.IntRange(0, 2**32 - 1), metavar="ID", help=text)


def say(name: str, error: str | None, notes: tuple[str, ...]) -> None:
    """Say on standard error what you should know of one file."""
    if error:
        click.echo(f"Error: {error if name in error else f'{name}: {error}'}", err=True)
    for note in notes:
        click.echo(f"{name}: {note}", err=True)


def hint_detect(target: Path, key: str, model: str, *, recursive: bool = False) -> None:
    """Say how to detect what was marked."""
    words = ["privgen", "watermark", "detect", str(target), *(["--recursive"] if recursive else []), "--key", key]
    words += [] if model == "mini" else ["--model", model]
    click.echo(f"Hint: {shlex.join(words)}", err=True)


def hint_locate(target: str, keys: Iterable[str], carrier: str | None = None) -> None:
    """Say how to locate the objects that were marked with a carrier."""
    words = ["privgen", "watermark", "detect", target, "--locate"]
    words += [] if carrier in (None, "tile") else ["--carrier", str(carrier)]
    words += [word for key in dict.fromkeys(keys) for word in ("--key", key)]
    click.echo(f"Hint: {shlex.join(words)}", err=True)
