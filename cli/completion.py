"""What the shell offers when you press Tab. Nothing heavy is imported, so that it offers at once."""

from collections.abc import Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem


ATTACKS = (
    *("all", "aspect_crop", "blur", "border", "brightness", "caption", "collage", "contrast", "crop", "degradation"),
    *("erase", "flip", "gamma", "geometric", "grey", "hue", "instagram", "jpeg", "micro_warp", "noise", "pad"),
    *("photometric", "rotation", "saturation", "scale", "screenshot", "sharpness", "telegram", "upload_chain", "webp"),
    *("wechat", "whatsapp", "bilateral_guided", "diffpure", "gridpure", "impress", "median", "non_local_means"),
    *("regeneration", "rinsing", "super_resolution", "total_variation", "vae", "averaging_forgery"),
    *("averaging_removal", "embedding", "extractor_forgery", "extractor_removal", "remarking", "surrogate_forgery"),
    "surrogate_removal",
)
"""The names of `privgen.attacks.list_attacks()`, in its order; a test compares the two."""

MODELS = ("mini", "mini-sd")
"""The names of `privgen.hub.EMBEDDED`; a test compares the two."""

JOINT = " then "
"""`privgen.attacks.registry.JOINT`."""


def attacks(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of attacks; in a quoted text, also after "then"."""
    before, joint, last = typed.rpartition(JOINT)
    return _items((before + joint + name for name in ATTACKS if name.startswith(last.lstrip())), "plain")


def keys(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of keys in the folder of keys, or else files."""
    return _starting(typed, _key_names(), "file")


def keys_after_name(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of keys behind a name and "=", as in cat=alice."""
    name, equals, key = typed.partition("=")
    return _items((f"{name}={known}" for known in _key_names() if equals and known.startswith(key)), "plain")


def credentials(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of credentials in their folder, or else files."""
    from privgen.provenance.credentials import SUFFIX, credentials_folder

    names = sorted(path.name.removesuffix(SUFFIX) for path in credentials_folder().glob(f"*{SUFFIX}"))
    return _starting(typed, names, "file")


def models(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Names of the models that ship, or else folders."""
    return _starting(typed, MODELS, "dir")


def recipes(context: click.Context, parameter: click.Parameter, typed: str) -> list[CompletionItem]:
    """Recipes that ship, or else files."""
    from importlib.resources import files

    folder = Path(str(files("privgen"))) / "recipes"
    return _starting(typed, (f"privgen:recipes/{path.name}" for path in sorted(folder.glob("*.toml"))), "file")


def _key_names() -> list[str]:
    from privgen.watermark.key import SUFFIX, key_folder

    return sorted(path.name.removesuffix(SUFFIX) for path in key_folder().glob(f"*{SUFFIX}"))


def _starting(typed: str, names: Iterable[str], otherwise: str) -> list[CompletionItem]:
    """The names that begin with what is typed; without any, what the shell finds itself: "file" or "dir"."""
    return _items((name for name in names if name.startswith(typed)), "plain") or _items([typed], otherwise)


def _items(values: Iterable[str], kind: str) -> list[CompletionItem]:
    return [CompletionItem(value, type=kind) for value in values]
