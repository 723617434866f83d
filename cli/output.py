"""Results on standard output, for people and for programs."""

import dataclasses
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from privgen.errors import UNPRINTABLE, printable


_NAMED = 5  # files that are named of those that were left out


def echo(result: Any, *, as_json: bool = False) -> None:
    """Print a result.

    Args:
        result: a dataclass instance or a mapping, printed as one line per entry; or a sequence of these with
            the same entries, printed as one row each.
        as_json: print JSON instead.
    """
    plain = to_json(result)
    if as_json:
        click.echo(json_text(plain, indent=2))
        return
    write(_table(plain) if isinstance(plain, list) else _lines(plain))


def write(text: str, *, err: bool = False) -> None:
    """Print lines of text; what would steer a terminal is escaped.

    Args:
        text: the lines. Put names of files through `printable` first, if a line break in one would mislead.
        err: print to standard error.
    """
    click.echo(printable(text, keep="\n"), err=err)


def json_text(plain: Any, indent: int | None = None) -> str:
    """A value of `to_json` as JSON: letters stay readable, and what would steer a terminal is escaped."""
    text = json.dumps(plain, indent=indent, ensure_ascii=False, allow_nan=False)
    return UNPRINTABLE.sub(lambda found: found[0] if found[0] == "\n" else f"\\u{ord(found[0]):04x}", text)


def say_others(paths: Iterable[Path], *, recursive: bool) -> None:
    """Say in one line on standard error which files in the folders named were left out, because they are no images.

    Args:
        paths: files and folders that a command was given.
        recursive: whether it looked into folders inside the folders.
    """
    from privgen.io.files import iter_image_files, iter_other_files

    places = list(paths)
    others = iter_other_files(places, recursive=recursive)
    if not others:
        return
    total = len(others) + len(iter_image_files(places, recursive=recursive))
    names = ", ".join(printable(file) for file in others[:_NAMED])
    more = f" and {len(others) - _NAMED} more" if len(others) > _NAMED else ""
    write(f"{len(others)} of {total} files skipped, which are no images that are read: {names}{more}.", err=True)


def to_json(value: Any) -> Any:
    """A value in the terms of JSON; numbers that JSON lacks become null, tensors and arrays become lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_json(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [to_json(item) for item in value]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int, str)) else str(value)


def _lines(record: Mapping[str, Any]) -> str:
    return _aligned([[name, text] for name, text in _flat(record).items()])


def _table(records: Sequence[Mapping[str, Any]]) -> str:
    rows = [_flat(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    return _aligned([names, *([row.get(name, "-") for name in names] for row in rows)])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def _flat(record: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    rows: dict[str, str] = {}
    for key, value in record.items():
        name = prefix + key.replace("_", " ")
        rows |= _flat(value, f"{name} ") if isinstance(value, dict) else {name: _text(value)}
    return rows


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(_text, value)) or "-"
    return "-" if value is None else printable(value)
