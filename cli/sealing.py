"""The options that say where images come from: a label, and a signature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from privgen.cli import completion
from privgen.cli.options import Decorator, named


if TYPE_CHECKING:
    from privgen.provenance.label import Preset
    from privgen.provenance.seal import Seal


def sign() -> Decorator[Any]:
    """``--sign``: whose credentials sign the files, as `sign: str | None`."""
    text = "Sign the files with these Content Credentials of `privgen credentials`; needs the extra c2pa."
    return click.option("--sign", metavar="NAME", help=text, shell_complete=completion.credentials)


def label() -> Decorator[Any]:
    """``--label``: the law whose facts the metadata lists, as `label: Preset | None`."""
    text = "Say in the metadata that AI made the images, with the facts that this law lists."
    return click.option("--label", type=click.Choice(["eu-ai-act", "sb-942"]), help=text)


def say() -> Decorator[Any]:
    """``--say``: what the label also says, as `said: tuple[str, ...]`."""
    text = "What the metadata also says: the provider, system, system_version, creator or credit; repeatable."
    return click.option("--say", "said", multiple=True, metavar="NAME=TEXT", help=text)


def seal_of(sign: str | None, label: Preset | None, said: Sequence[str]) -> Seal | None:
    """Return what the three options ask for; None if nothing.

    Raises:
        click.UsageError: a text of another name.
        UsageError: a label that lacks what the law lists.
        PrivgenError: there are no such credentials.
    """
    texts = named(said, "--say")
    if sign is None and label is None and not texts:
        return None
    from privgen.provenance.credentials import Credentials
    from privgen.provenance.label import Label
    from privgen.provenance.seal import SAID, Seal

    if unknown := [name for name in texts if name not in SAID]:
        raise click.UsageError(f"--say {unknown[0]}=TEXT is not known; say {', '.join(SAID)}.")
    return Seal(None if sign is None else Credentials.load(sign), Label(**texts), label)
