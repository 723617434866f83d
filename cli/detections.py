"""How ``privgen watermark detect`` prints what it finds: each file as soon as it is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import click

from privgen.cli.output import json_text, to_json, write
from privgen.errors import printable
from privgen.io.csv_lines import csv_line


if TYPE_CHECKING:
    from privgen.watermark.read.detect_files import DetectedFile
    from privgen.watermark.regions import Region


Format: TypeAlias = Literal["text", "json", "csv"]

COLUMNS = (
    *("file", "owner", "p_value", "carrier", "matches", "n_bits"),
    *("payload", "issued", "where", "best_match", "error"),
)
"""Of --csv. A file has a row for each of its regions, and one row without an owner if no mark is found."""


def printer(form: Format, files: Sequence[Path]) -> Callable[[DetectedFile], None]:
    """Return what prints one file.

    Args:
        form: "text" is a sentence for one file and a table for several, "json" one line of JSON for each file, "csv"
            rows with `COLUMNS`.
        files: that will be read; the table is as wide as the longest name.
    """
    if form == "json":
        return lambda file: click.echo(json_text(to_json(file.record())))
    if form == "csv":
        _echo_csv([COLUMNS])
        return lambda file: _echo_csv([[row[name] for name in COLUMNS] for row in _rows(file)])
    if len(files) == 1:
        return _sentence
    width = max(len(printable(path)) for path in files)
    write(_line(width, "file", "owner", "p", "where"))
    return lambda file: _table_rows(file, width)


def _sentence(file: DetectedFile) -> None:
    if file.detection is not None:
        write(f"{printable(file.file)}: {file.detection}")
    for record in file.records:
        write(printable(f"{file.file}: {record}"))


def _table_rows(file: DetectedFile, width: int) -> None:
    name = printable(file.file)
    for row in _rows(file) if file.detection is not None else ():
        where = str(row["where"]) + ("" if row["payload"] == "" else f", payload {row['payload']}")
        write(_line(width, name, str(row["owner"] or "-"), f"{row['p_value']:.2g}", where))
        name = ""  # once, above all regions of the file
    for record in file.records:
        write(printable(f"{'':<{width}}  {record}"))


def _line(width: int, name: str, owner: str, p: str, where: str) -> str:
    return f"{name:<{width}}  {owner:<16}  {p:<8}  {where}".rstrip()


def _rows(file: DetectedFile) -> list[dict[str, object]]:
    """The regions of a file, or what is known if there are none."""
    blank: dict[str, object] = {**dict.fromkeys(COLUMNS, ""), "file": file.file, "error": file.error or ""}
    found = file.detection
    if found is None:
        return [blank]
    blank |= {"n_bits": found.n_bits, "best_match": found.best.key}
    if not found.regions:
        return [blank | {"p_value": found.p_value, "carrier": found.best.carrier, "matches": found.best.matches}]
    issued = {(record.key.key_id, record.payload): str(record.issued or "") for record in file.records}
    carriers = {match.key_id: match.carrier for match in found.keys}
    return [
        blank
        | {
            "owner": region.key,
            "p_value": region.p_value,
            "carrier": carriers[region.key_id],
            "matches": region.matches,
            "payload": "" if region.payload is None else region.payload,
            "issued": issued.get((region.key_id, region.payload), ""),
            "where": _where(region),
        }
        for region in found.regions
    ]


def _where(region: Region) -> str:
    """Where a mark is; if the whole image carries it, how the image was cut from the marked one, if that is known."""
    if region.is_whole:
        return region.pose or region.place()
    return "; ".join(filter(None, (region.place(), region.pose)))


def _echo_csv(rows: Sequence[Sequence[object]]) -> None:
    click.echo("".join(map(csv_line, rows)), nl=False)
