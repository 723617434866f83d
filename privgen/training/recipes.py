"""Recipes: TOML files that say what to train, on what, and for how long.

A recipe has two tables: one named after the kind of model, with the fields of its dataclass, and `[loop]` with those
of `LoopOptions`. Paths are relative to the working folder; `privgen:` at their beginning stands for the folder in
which this package is installed.
"""

import json
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields, replace
from importlib import import_module
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

from torch import Tensor

from privgen.errors import UsageError
from privgen.training.loop import LoopOptions, Task


KINDS = {
    "vae": ("privgen.training.mini.autoencoder", "VaeRecipe", "VaeTask"),
    "classifier": ("privgen.training.mini.classifier", "ClassifierRecipe", "ClassifierTask"),
    "diffusion": ("privgen.training.mini.text_to_image", "DiffusionRecipe", "DiffusionTask"),
    "denoiser": ("privgen.training.mini.denoiser", "DenoiserRecipe", "DenoiserTask"),
    "extractor": ("privgen.training.watermark.extractor", "ExtractorRecipe", "ExtractorTask"),
    "aligner": ("privgen.training.watermark.aligner", "AlignerRecipe", "AlignerTask"),
    "token": ("privgen.training.watermark.token_language", "TokenRecipe", "TokenTask"),
    "mapper": ("privgen.training.watermark.token_mapper", "MapperRecipe", "MapperTask"),
}
"""Kind of model: module, dataclass of its recipe, task."""

Distort = Callable[..., Tensor]
"""Called as `distort(images, generator=[one for each image])`, images (B, 3, H, W) in [0, 1]."""

MakeDistortion = Callable[[Sequence[str], float], Distort | None]
"""From a recipe's `distortions` and `distortion_scale`; attacks are not this package's core, so they are passed in."""

PACKAGE = "privgen:"
_COUNTED = "samples"
"""The one field of a model's table that no file sets, because it follows from the loop."""
_AT_LEAST_ONE = ("steps", "batch_size", "log_every", "preview_every")
_UNIMPORTANT = ("loop.checkpoint_minutes", "loop.log_every", "loop.preview_every")


@dataclass(frozen=True)
class Recipe:
    """What to train.

    Attributes:
        kind: a key of `KINDS`.
        model: the dataclass that the kind has.
        loop: how long and how fast.
    """

    kind: str
    model: Any
    loop: LoopOptions

    def __post_init__(self) -> None:
        """Tell the model how many samples the loop draws."""
        if hasattr(self.model, _COUNTED):
            samples = self.loop.steps * self.loop.batch_size
            object.__setattr__(self, "model", replace(self.model, **{_COUNTED: samples}))

    def distortion(self, make: MakeDistortion | None = None) -> Distort | None:
        """What images go through in training; None if the recipe names no distortions.

        Args:
            make: such as `privgen.attacks.training_distortion.training_distortion`.

        Raises:
            UsageError: the recipe names distortions, and there is nothing that makes them, or not these.
        """
        names = getattr(self.model, "distortions", ())
        if not names:
            return None
        if make is None:
            raise UsageError(
                f"The recipe trains against {', '.join(names)}; pass distortion=training_distortion from "
                "privgen.attacks.training_distortion."
            )
        return make(names, self.model.distortion_scale)

    def task(self, distortion: Distort | None = None) -> Task:
        """An untrained model with its data and its loss.

        Args:
            distortion: as the method of that name gives it; only for kinds whose recipes name distortions.
        """
        module, _, task = KINDS[self.kind]
        more = {} if distortion is None else {"attack": distortion}
        made: Task = getattr(import_module(module), task)(self.model, self.loop.seed, **more)
        return made

    def tables(self) -> dict[str, dict[str, Any]]:
        """What a file says: the fields of the model by the kind's name, and those of the loop."""
        model = {name: value for name, value in asdict(self.model).items() if name != _COUNTED}
        return {self.kind: model, "loop": asdict(self.loop)}

    def values(self) -> dict[str, Any]:
        """Every field by its full name, such as "loop.steps"."""
        return {f"{table}.{name}": value for table, row in self.tables().items() for name, value in row.items()}


def packaged_recipe(kind: str) -> Path:
    """The recipe that ships for a kind of model."""
    return Path(str(files("privgen"))) / "recipes" / f"{kind}.toml"


def load_recipe(kind: str, path: str | os.PathLike[str] | None = None, changes: Iterable[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        kind: a key of `KINDS`.
        path: the file, also "privgen:recipes/extractor-further.toml"; by default the recipe that ships for the kind.
        changes: fields to set after reading, such as "loop.steps=100"; values as TOML writes them, or bare texts.

    Raises:
        UsageError: the file cannot be read; an unknown, missing or ill-typed field. The message names file and field.
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
    """A recipe as TOML that `load_recipe` reads again; fields that are None are left out."""
    lines: list[str] = []
    for table, row in recipe.tables().items():
        lines += [f"[{table}]", *(f"{name} = {_toml(value)}" for name, value in row.items() if value is not None), ""]
    return "\n".join(lines[:-1]) + "\n"


def differences(old: Recipe, new: Recipe) -> list[str]:
    """The fields by which two recipes lead to different weights, such as "loop.steps: 100 there, 200 now".

    Where data lie does not count, and neither does how often a run is saved and shown.
    """
    was, now = old.values(), new.values()
    return [
        f"{name}: {was.get(name)} there, {value} now"
        for name, value in now.items()
        if name not in _UNIMPORTANT and not isinstance(value, Path) and was.get(name) != value
    ]


def _read(file: Path, kind: str) -> dict[str, dict[str, Any]]:
    try:
        tables = tomllib.loads(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UsageError(f"The recipe {file} cannot be read: {reason}.") from error
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"The recipe {file} is not TOML: {error}.") from error
    strange = [name for name, row in tables.items() if name not in (kind, "loop") or not isinstance(row, dict)]
    if strange:
        raise UsageError(f"{file}: a recipe for {kind} has the tables [{kind}] and [loop], not {', '.join(strange)}.")
    return {kind: {}, "loop": {}} | tables


def _parse_change(change: str, kind: str) -> tuple[str, str, Any]:
    name, equals, text = change.partition("=")
    table, dot, field = name.strip().partition(".")
    if not (equals and dot and field) or table not in (kind, "loop"):
        raise UsageError(f"--set {change}: write {kind}.FIELD=VALUE or loop.FIELD=VALUE.")
    try:
        return table, field, tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return table, field, text


def _build(cls: type, table: str, row: Mapping[str, Any], file: Path, origins: Mapping[str, str]) -> Any:
    known = {field.name: field for field in fields(cls) if field.name != _COUNTED}
    hints = get_type_hints(cls)
    values = {}
    for name, value in row.items():
        where = origins.get(f"{table}.{name}", f"{file}, [{table}]")
        if name not in known:
            raise UsageError(f"{where}: there is no field {name!r}; choose from {', '.join(known)}.")
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
    """A TOML value as a field's type.

    Raises:
        ValueError: it is of another type; the message goes on after the field's name.
    """
    arguments = [argument for argument in get_args(kind) if argument is not NoneType]
    if get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"must be a list, not {value!r}")
        return tuple(_convert(arguments[0], item) for item in value)
    if len(arguments) == 1:  # such as `Path | None`
        return _convert(arguments[0], value)
    if kind is Path and isinstance(value, str):
        return _place(value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        name = {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "a text")
        raise ValueError(f"must be {name}, not {value!r}")
    return value


def _place(path: str) -> Path:
    return Path(str(files("privgen"))) / path.removeprefix(PACKAGE) if path.startswith(PACKAGE) else Path(path)


def _toml(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, (str, Path)):
        return json.dumps(str(value), ensure_ascii=False)
    return str(value).lower() if isinstance(value, bool) else repr(value)
