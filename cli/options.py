"""Options that several commands share, so that one name means one thing everywhere.

Each function returns a decorator; what it is given goes on to `click.option`:

    @click.command()
    @options.model()
    @options.output(required=True, help="Folder for the images.")
    def generate(model: str, output: Path) -> None: ...
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click


Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]


def model(**overrides: Any) -> Decorator[Any]:
    """``--model/-m``: an embedded model, a folder or a Hub id, as `model: str`."""
    text = "Embedded model, local Diffusers folder or Hub id."
    return _option("--model", "-m", overrides, default="mini", metavar="NAME", help=text)


def seed(**overrides: Any) -> Decorator[Any]:
    """``--seed``: what all randomness of the command comes from, as `seed: int`."""
    text = "Seed of all randomness; the same seed gives the same result."
    return _option("--seed", overrides, type=click.IntRange(0, 2**63 - 1), default=0, help=text)


def robust_steps(**overrides: Any) -> Decorator[Any]:
    """``--robust-steps``: rounds in which marks are fitted to their image, as `robust_steps: int`."""
    text = "Rounds of fitting the mark to each image, so that it survives regeneration; carrier latent only."
    kind = click.IntRange(0, 1000)
    return _option("--robust-steps", overrides, type=kind, default=0, metavar="ROUNDS", help=text)


def device(**overrides: Any) -> Decorator[Any]:
    """``--device``: a PyTorch device or `auto`, as `device: str`."""
    text = "PyTorch device such as cpu, cuda:1 or mps; auto takes the fastest that is there."
    return _option("--device", overrides, default="auto", metavar="NAME", help=text)


def dtype(**overrides: Any) -> Decorator[Any]:
    """``--dtype``: precision of the weights, as `dtype: str`."""
    kinds = click.Choice(["auto", "float32", "float16", "bfloat16"])
    text = "Precision of the weights; auto chooses by the device."
    return _option("--dtype", overrides, type=kinds, default="auto", help=text)


def json(**overrides: Any) -> Decorator[Any]:
    """``--json``: print the result as JSON, as `as_json: bool`."""
    return _option("--json", "as_json", overrides, is_flag=True, show_default=False, help="Print JSON.")


def output(**overrides: Any) -> Decorator[Any]:
    """``--output/-o``: where results go, as `output: Path | None`."""
    kind = click.Path(path_type=Path)
    return _option("--output", "-o", overrides, type=kind, metavar="PATH", help="Where to write the result.")


def overwrite(**overrides: Any) -> Decorator[Any]:
    """``--overwrite``: replace files that exist, as `overwrite: bool`."""
    return _option("--overwrite", overrides, is_flag=True, show_default=False, help="Replace files that exist.")


def examples(*lines: str) -> str:
    """Epilog of a command's help: its examples, one a line.

    Args:
        *lines: commands as a user would type them.

    Returns:
        Text whose lines click leaves as they are.
    """
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])


def _option(*declarations: Any, **settings: Any) -> Decorator[Any]:
    *names, overrides = declarations
    return click.option(*names, **{"show_default": True, **settings, **overrides})
