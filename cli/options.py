"""Options that several commands share, so that one name means one thing everywhere.

Each function returns a decorator:

    @click.command()
    @options.model()
    @options.output(required=True, help="Folder for the images.")
    def generate(model: str, output: Path) -> None: ...
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from privgen.cli import completion
from privgen.io.files import MAX_PIXELS


Command = TypeVar("Command", bound=Callable[..., Any])
Decorator = Callable[[Command], Command]


def model() -> Decorator[Any]:
    """``--model/-m``: an embedded model, a folder or a Hub id, as `model: str`."""
    text = "Embedded model, local Diffusers folder or Hub id."
    names = completion.models
    return click.option(
        "--model", "-m", default="mini", show_default=True, metavar="NAME", help=text, shell_complete=names
    )


def vae() -> Decorator[Any]:
    """``--vae``: an autoencoder for a model that has none, as `vae: str | None`."""
    text = "Folder or Hub id of an autoencoder to use instead of the model's own; mini-sd needs one."
    return click.option("--vae", metavar="NAME", help=text)


def seed(help: str = "Seed of all randomness; the same seed gives the same result.") -> Decorator[Any]:
    """``--seed``: what all randomness of the command comes from, as `seed: int`."""
    return click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True, help=help)


def device() -> Decorator[Any]:
    """``--device``: a PyTorch device or `auto`, as `device: str`."""
    text = "PyTorch device such as cpu, cuda:1 or mps; auto is the fastest one that is there."
    return click.option("--device", default="auto", show_default=True, metavar="NAME", help=text)


def dtype() -> Decorator[Any]:
    """``--dtype``: precision of the weights, as `dtype: str`."""
    kinds = click.Choice(["auto", "float32", "float16", "bfloat16"])
    text = "Precision of the weights; auto is float16 on CUDA and float32 elsewhere."
    return click.option("--dtype", type=kinds, default="auto", show_default=True, help=text)


def json() -> Decorator[Any]:
    """``--json``: print the result as JSON, as `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")


def output(*, help: str, required: bool = False, metavar: str = "PATH", default: Path | None = None) -> Decorator[Any]:
    """``--output/-o``: where results go, as `output: Path`, or `Path | None` if it may be left out."""
    kind = click.Path(path_type=Path)
    if default is None:
        return click.option("--output", "-o", type=kind, required=required, metavar=metavar, help=help)
    return click.option("--output", "-o", type=kind, default=default, show_default=True, metavar=metavar, help=help)


def metadata() -> Decorator[Any]:
    """``--metadata``: what files keep beside their pixels, as `metadata: Keeping`."""
    text = (
        "What files keep of EXIF, XMP, IPTC, comment, resolution and text: all, nothing, or what names neither place "
        "nor camera. The colour profile always stays."
    )
    kinds = click.Choice(["keep", "strip", "private"])
    return click.option("--metadata", type=kinds, default="keep", show_default=True, help=text)


def quality() -> Decorator[Any]:
    """``--quality``: of lossy files, as `quality: int | None`."""
    text = "With --format same: quality of JPEG, WebP and AVIF files, instead of that of the source."
    kind = click.IntRange(1, 100)
    shown = "JPEG that of the source, others 95"
    return click.option("--quality", type=kind, show_default=shown, metavar="1..100", help=text)


def check_quality(quality: int | None, kind: str, output: Path) -> None:
    """Refuse ``--quality`` where all files become PNG files.

    Args:
        quality: what the user wants.
        kind: of ``--format``.
        output: folder, or file to write.

    Raises:
        click.UsageError: PNG files have no quality.
    """
    if quality is not None and kind != "same" and output.suffix.lower() in ("", ".png"):
        raise click.UsageError("--quality needs --format same: PNG files lose nothing.")


def max_pixels() -> Decorator[Any]:
    """``--max-pixels``: largest image to read, as `max_pixels: int`."""
    text = "Refuse images of more pixels than this, such as 24e6 or 200MP."
    default = MAX_PIXELS
    return click.option("--max-pixels", type=pixel_count, default=default, show_default=True, metavar="N", help=text)


def pixel_count(text: str | int) -> int:
    """Return the number of pixels that a user means.

    Args:
        text: such as 120000000, 24e6, 100MP or 1.5GP.

    Raises:
        click.BadParameter: it is no number, or not positive.
    """
    number = str(text).strip().upper()
    factor = {"MP": 10**6, "GP": 10**9}.get(number[-2:], 1)
    try:
        count = float(number[:-2] if factor > 1 else number) * factor
    except ValueError:
        count = math.nan
    if not 1 <= count < 2**53:  # also where it is NaN
        raise click.BadParameter(f"{text!r} is not a number of pixels; write one such as 24e6 or 100MP.")
    return int(count)


def overwrite() -> Decorator[Any]:
    """``--overwrite``: replace files that exist, as `overwrite: bool`."""
    return click.option("--overwrite", is_flag=True, help="Replace files that exist.")


def images() -> Decorator[Any]:
    """``IMAGE_OR_FOLDER...``: image files, and folders of them, as `images: tuple[Path, ...]`."""
    kind = click.Path(path_type=Path)
    return click.argument("images", nargs=-1, required=True, type=kind, metavar="IMAGE_OR_FOLDER...")


def recursive() -> Decorator[Any]:
    """``--recursive/-r``: look into folders inside folders, as `recursive: bool`."""
    text = "Also take the images in folders inside the folders; results keep the paths below."
    return click.option("--recursive", "-r", is_flag=True, help=text)


def key(help: str = "Key file, or the name of a key: whose mark.", *, required: bool = True) -> Decorator[Any]:
    """``--key``: whose mark, as `key: str`, or `str | None` if it may be left out."""
    return click.option("--key", required=required, metavar="FILE", help=help, shell_complete=completion.keys)


def issued_for(flag: str) -> Decorator[Any]:
    """What IDs are issued for, as `note: str | None` and `user: str | None`.

    Args:
        flag: the option for the note.
    """
    note = click.option(flag, "note", metavar="TEXT", help="What the ID is issued for: text or JSON of yours.")
    user = click.option("--user", metavar="TEXT", help="For whom the ID is issued: a reference of yours.")
    return lambda command: note(user(command))


def registry(help: str) -> Decorator[Any]:
    """``--registry``, as `registry: Path | None`."""
    return click.option("--registry", type=click.Path(path_type=Path), metavar="DB", help=help)


def check_registry(
    registry: Path | None, key: str | None, issued_for: tuple[str | None, str | None], *, excluded: bool
) -> None:
    """Check the options of a command that issues IDs.

    Args:
        registry: of ``--registry``.
        key: of ``--key``.
        issued_for: note and user of ``issued_for``.
        excluded: whether there are options that do not go with issued IDs.

    Raises:
        click.UsageError: options that do not go together.
    """
    if registry is not None and (key is None or excluded):
        raise click.UsageError(
            "--registry issues an ID for each whole image: give --key, and leave out what marks objects, writes "
            "another payload, or changes the sampling."
        )
    if registry is None and issued_for != (None, None):
        raise click.UsageError("--issued-for and --user need --registry, which records them.")


def named(values: Sequence[str], option: str) -> dict[str, str]:
    """Return what is given as NAME=VALUE, by name.

    Args:
        values: of a repeatable option.
        option: its name, for messages.

    Raises:
        click.UsageError: a value without a name, or a name that is given twice.
    """
    pairs: dict[str, str] = {}
    for value in values:
        name, equals, item = value.partition("=")
        if not (name and equals and item):
            raise click.UsageError(f"{option} {value} has no name; write {option} NAME=VALUE.")
        if name in pairs:
            raise click.UsageError(f"{option} names {name} twice; give it once.")
        pairs[name] = item
    return pairs


def robust_steps() -> Decorator[Any]:
    """``--robust-steps``: gradient steps that fit a mark to its image, as `robust_steps: int`."""
    text = "Gradient steps that fit the mark to each image, so that it survives regeneration; carrier latent only."
    kind = click.IntRange(0, 1000)
    return click.option("--robust-steps", type=kind, default=0, show_default=True, metavar="STEPS", help=text)


def examples(*lines: str) -> str:
    """Epilog of a command's help: its examples, one a line.

    Args:
        *lines: commands as a user would type them.

    Returns:
        Text whose lines click leaves as they are.
    """
    return "\n".join(["\b", "Examples:", *(f"  {line}" for line in lines)])
