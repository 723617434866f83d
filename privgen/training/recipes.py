"""Recipes: TOML files that say what to train, on which data, and for how long.

A recipe has two tables. One has the name of the kind of model, and holds the fields of its dataclass. The other is
`[loop]`, and holds those of `LoopOptions`. Paths are relative to the working folder. A path that begins with
`privgen:` is relative to the folder in which this package is installed.
"""

import json
import math
import os
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields, replace
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any, get_args, get_origin, get_type_hints

from privgen.errors import UsageError, shortened
from privgen.io.files import read_small
from privgen.training.loop import LoopOptions, Task


if TYPE_CHECKING:
    from _typeshed import DataclassInstance


KINDS = {
    "autoencoder": ("privgen.training.mini.autoencoder", "AutoencoderRecipe", "AutoencoderTask"),
    "text-to-image": ("privgen.training.mini.text_to_image", "TextToImageRecipe", "TextToImageTask"),
    "denoiser": ("privgen.training.mini.denoiser", "DenoiserRecipe", "DenoiserTask"),
    "classifier": ("privgen.training.mini.classifier", "ClassifierRecipe", "ClassifierTask"),
    "extractor": ("privgen.training.watermark.extractor", "ExtractorRecipe", "ExtractorTask"),
    "aligner": ("privgen.training.watermark.aligner", "AlignerRecipe", "AlignerTask"),
    "token-language": ("privgen.training.watermark.token_language", "TokenLanguageRecipe", "TokenLanguageTask"),
    "token-mapper": ("privgen.training.watermark.token_mapper", "TokenMapperRecipe", "TokenMapperTask"),
    "shift": ("privgen.training.protection.shift", "ShiftRecipe", "ShiftTask"),
    "shield": ("privgen.training.protection.shield", "ShieldRecipe", "ShieldTask"),
}
"""For each kind of model: the module that trains it, the dataclass of its recipe, and its task."""

PACKAGE = "privgen:"
"""Beginning of a path in the folder of this package."""

_LARGEST = 32_768  # bytes of a recipe
_COUNTED = "samples"  # the one field of a kind's table that no file sets, because it follows from the loop
_AT_LEAST_ONE = ("steps", "batch_size", "log_every", "preview_every")
_UNIMPORTANT = ("loop.checkpoint_minutes", "loop.log_every", "loop.preview_every")


@dataclass(frozen=True)
class Recipe:
    """What to train.

    Attributes:
        kind: of model, a key of `KINDS`.
        model: the dataclass of the kind.
        loop: how long to train, and how fast.
    """

    kind: str
    model: "DataclassInstance"
    loop: LoopOptions

    def __post_init__(self) -> None:
        """Tell the model how many samples the loop draws."""
        if hasattr(self.model, _COUNTED):
            samples = self.loop.steps * self.loop.batch_size
            object.__setattr__(self, "model", replace(self.model, **{_COUNTED: samples}))

    def task(self) -> Task:
        """Build what is trained: the model in its initial state, its data and its loss."""
        module, _, task = KINDS[self.kind]
        made: Task = getattr(import_module(module), task)(self.model, self.loop.seed)
        return made

    def tables(self) -> dict[str, dict[str, Any]]:
        """The tables of a recipe's file: their names, and the values of their fields."""
        model = {name: value for name, value in asdict(self.model).items() if name != _COUNTED}
        return {self.kind: model, "loop": asdict(self.loop)}

    def values(self) -> dict[str, Any]:
        """The values of all fields by their full names, such as "loop.steps"."""
        return {f"{table}.{name}": value for table, row in self.tables().items() for name, value in row.items()}


def packaged_recipe(kind: str) -> Path:
    """The path of the recipe that ships for a kind of model."""
    return Path(str(files("privgen"))) / "recipes" / f"{kind}.toml"


def load_recipe(kind: str, path: str | os.PathLike[str] | None = None, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe from a file.

    Args:
        kind: of model, a key of `KINDS`.
        path: the file, such as "mine.toml" or "privgen:recipes/extractor-further.toml". None reads the recipe that
            ships for the kind.
        changes: fields to set after reading, such as "loop.steps=100". Write values as in TOML; texts need no quotes.

    Raises:
        UsageError: the kind is unknown or the file cannot be read, or a field is unknown, missing or of another type.
            The message names the file and the field.
    """
    if kind not in KINDS:
        raise UsageError(f"{kind!r} cannot be trained; choose from {', '.join(KINDS)}.")
    file = _place(os.fspath(path)) if path is not None else packaged_recipe(kind)
    tables = _read(file, kind)
    origins: dict[str, str] = {}
    for change in changes:
        table, name, value = _parse_change(change, kind)
        tables[table][name] = value
        origins[f"{table}.{name}"] = f"--set {change}"
    module, recipe, _ = KINDS[kind]
    model = _build(getattr(import_module(module), recipe), kind, tables[kind], file, origins)
    loop = _build(LoopOptions, "loop", tables["loop"], file, origins)
    for name in _AT_LEAST_ONE:
        if getattr(loop, name) < 1:
            where = origins.get(f"loop.{name}", f"{file}, [loop]")
            raise UsageError(f"{where}: {name} must be at least 1, not {getattr(loop, name)}.")
    return Recipe(kind, model, loop)


def dump_recipe(recipe: Recipe) -> str:
    """Write a recipe as TOML, from which `load_recipe` makes the same recipe. Fields that are None are left out."""
    lines: list[str] = []
    for table, row in recipe.tables().items():
        lines += [f"[{table}]", *(f"{name} = {_toml(value)}" for name, value in row.items() if value is not None), ""]
    return "\n".join(lines[:-1]) + "\n"


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The fields by which two recipes give different weights, such as "loop.steps: 100 there, 200 now".

    Paths are left out, because the same data may lie elsewhere, and so is how often a run is saved and shown.
    """
    was, now = old.values(), new.values()
    return [
        f"{name}: {was.get(name)} there, {value} now"
        for name, value in now.items()
        if name not in _UNIMPORTANT and not isinstance(value, Path) and was.get(name) != value
    ]


def _read(file: Path, kind: str) -> dict[str, dict[str, Any]]:
    """The tables of a file."""
    try:
        tables = tomllib.loads(read_small(file, _LARGEST).decode())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"The recipe {file} cannot be read: {reason}.") from error
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits raise ValueError
        raise UsageError(f"The recipe {file} is not TOML: {shortened(error)}.") from error
    strange = [name for name, row in tables.items() if name not in (kind, "loop") or not isinstance(row, dict)]
    if strange:
        names = shortened(", ".join(strange))
        raise UsageError(f"{file}: a recipe for {kind} has the tables [{kind}] and [loop], not {names}.")
    return {kind: {}, "loop": {}} | tables


def _parse_change(change: str, kind: str) -> tuple[str, str, Any]:
    """Table, field and value of a change such as "loop.steps=100"."""
    name, equals, text = change.partition("=")
    table, dot, field = name.strip().partition(".")
    if not (equals and dot and field) or table not in (kind, "loop"):
        raise UsageError(f"--set {change}: write {kind}.FIELD=VALUE or loop.FIELD=VALUE.")
    try:
        return table, field, tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return table, field, text


def _build(cls: type, table: str, row: Mapping[str, Any], file: Path, origins: Mapping[str, str]) -> Any:
    """A dataclass from the row of a table; `origins` says which fields come from elsewhere than the file."""
    known = {field.name: field for field in fields(cls) if field.name != _COUNTED}
    hints = get_type_hints(cls)
    values = {}
    for name, value in row.items():
        where = origins.get(f"{table}.{name}", f"{file}, [{table}]")
        if name not in known:
            raise UsageError(f"{where}: there is no field {shortened(name, 60)!r}; choose from {', '.join(known)}.")
        try:
            values[name] = _convert(hints[name], value)
        except ValueError as error:
            raise UsageError(f"{where}: {name} {error}.") from error
    required = [n for n, f in known.items() if f.default is MISSING and f.default_factory is MISSING]
    missing = [name for name in required if name not in values]
    if missing:
        raise UsageError(f"{file}, [{table}]: {', '.join(missing)} must be given.")
    return cls(**values)


def _convert(kind: Any, value: Any) -> Any:
    """Convert a TOML value to the type of a field.

    Raises:
        ValueError: the value is of another type; the message ends a sentence that begins with the field's name.
    """
    arguments = [argument for argument in get_args(kind) if argument is not NoneType]
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"must be a list, not {_shown(value)}")
        return tuple(_convert(arguments[0], item) for item in value)
    if len(arguments) == 1:  # such as `Path | None`
        return _convert(arguments[0], value)
    if kind is Path and isinstance(value, str):
        return _place(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        name = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a text")
        raise ValueError(f"must be {name}, not {_shown(value)}")
    if kind is float and math.isnan(value):
        raise ValueError("must be a number, not NaN")
    return value


def _shown(value: Any) -> str:
    """A value of a file, short enough for a message."""
    return repr(shortened(value, 60)) if isinstance(value, str) else shortened(value, 60)


def _place(path: str) -> Path:
    """A path of a recipe as a path of the system."""
    return Path(str(files("privgen"))) / path.removeprefix(PACKAGE) if path.startswith(PACKAGE) else Path(path)


def _toml(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (str, Path)):
        # JSON escapes all that TOML does, but for the character DEL.
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
