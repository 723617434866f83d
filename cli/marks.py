"""What the commands of ``privgen watermark`` share: the option for the carrier, and what they say."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import click

from privgen.cli import options
from privgen.cli.output import write
from privgen.errors import printable


_SEARCH_SECONDS, _LOCATED_SECONDS = 0.04, 0.9  # for each key, on one core: in whole images, and for objects
_LONG = 10.0  # seconds from which on it is said how long a search takes


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


def fpr() -> options.Decorator[Any]:
    """The option --fpr."""
    kind = click.FloatRange(0, 1, min_open=True, max_open=True)
    text = "Probability that an unmarked image is called marked, whatever the number of keys."
    return click.option("--fpr", type=kind, default=1e-6, show_default=True, help=text)


def say(name: str, error: str | None, notes: tuple[str, ...]) -> None:
    """Say on standard error what you should know of one file."""
    if error:
        write(printable(f"Error: {error if name in error else f'{name}: {error}'}"), err=True)
    for note in notes:
        write(printable(f"{name}: {note}"), err=True)


def as_argument(path: str | Path) -> str:
    """A path as you would type it: one that begins with a hyphen is no option."""
    return f"./{path}" if str(path).startswith("-") else str(path)


def say_effort(keys: int, *, locate: bool) -> None:
    """Say on standard error how long a search for many keys takes."""
    seconds = keys * (_SEARCH_SECONDS + (_LOCATED_SECONDS if locate else 0))
    if seconds > _LONG:
        text = f"{seconds:.0f} seconds" if seconds < 100 else f"{seconds / 60:.0f} minutes"
        write(f"Note: a search for {keys} keys takes about {text} for an image without a mark.", err=True)


def hint_detect(target: Path, key: str, model: str, *, recursive: bool = False, option: str = "--key") -> None:
    """Say how to detect what was marked."""
    words = ["privgen", "watermark", "detect", as_argument(target)]
    words += [*(["--recursive"] if recursive else []), option, key]
    words += [] if model == "mini" else ["--model", model]
    write(printable(f"Hint: {shlex.join(words)}"), err=True)


def hint_locate(target: str, keys: Iterable[str], carrier: str | None = None) -> None:
    """Say how to locate the objects that were marked with a carrier."""
    words = ["privgen", "watermark", "detect", as_argument(target), "--locate"]
    words += [] if carrier in (None, "tile") else ["--carrier", str(carrier)]
    words += [word for key in dict.fromkeys(keys) for word in ("--key", key)]
    write(printable(f"Hint: {shlex.join(words)}"), err=True)
