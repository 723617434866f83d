"""Write what a registry holds as text, for other programs: JSON lines or CSV."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

from privgen.io.csv_lines import csv_line
from privgen.watermark.registry.registry import Registry


Table = Literal["keys", "ids"]
Format = Literal["jsonl", "csv"]


def export(registry: Registry, table: Table, kind: Format, *, secrets: bool = False) -> Iterator[str]:
    """Yield the lines of a table, each with its newline. A CSV begins with the names of the columns.

    Args:
        registry: to read.
        table: "keys" or "ids".
        kind: "jsonl" or "csv".
        secrets: add the secret of each key, as 64 hexadecimal digits. Who has it can write and remove its marks.
    """
    rows = _rows(registry, table, secrets)
    return _json_lines(rows) if kind == "jsonl" else _csv_lines(rows)


def _rows(registry: Registry, table: Table, secrets: bool) -> Iterator[dict[str, Any]]:
    if table == "ids":
        yield from (issued.record() for issued in registry.issued())
        return
    keys = registry.keys() if secrets else ()
    hidden = {key.key_id: {"secret": key.secret.hex()} for key in keys}
    for entry in registry.list():
        yield entry.record() | hidden.get(entry.key_id, {})


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for row in rows:
        yield json.dumps(row) + "\n"


def _csv_lines(rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    for number, row in enumerate(rows):
        if number == 0:
            yield csv_line(row)
        yield csv_line(row.values())
