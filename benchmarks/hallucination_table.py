"""The tables of docs/results/hallucination.md, from the record of `privgen evaluate hallucination --json`.

python benchmarks/hallucination_table.py docs/results/hallucination.json
"""

import json
from pathlib import Path
from typing import Any

import click


COLUMNS = {
    "hallucinated": "{:.3f}",
    "reduction": "{:.2f}",
    "matched_reduction": "{:.2f}",
    "content": "{:.2f}",
    "coverage_ratio": "{:.3f}",
    "even": "{:.1f}",
    "auroc": "{:.2f}",
}


def tables(record: dict[str, Any]) -> str:
    """A table for each task, with a row for each method and 95 % intervals; the summarised methods are bold."""
    return "\n\n".join(f"`{name}`:\n\n{_table(task)}" for name, task in record["tasks"].items())


def _table(task: dict[str, Any]) -> str:
    rows, summarised = task["methods"], set(task["ours"].values())
    columns = [column for column in COLUMNS if any(column in row for row in rows.values())]
    lines = [" | ".join(["| method", *columns]) + " |", "|---" * (1 + len(columns)) + "|"]
    for name, row in rows.items():
        cells = [_cell(row.get(column), COLUMNS[column]) for column in columns]
        lines.append(" | ".join([f"| **{name}**" if name in summarised else f"| {name}", *cells]) + " |")
    return "\n".join(lines)


def _cell(measured: dict[str, Any] | None, form: str) -> str:
    if measured is None or measured["value"] is None:
        return "-"
    value, low, high = (measured[key] for key in ("value", "low", "high"))
    if low is None or low == high:
        return form.format(value)
    return f"{form.format(value)} ({form.format(low)} to {form.format(high)})"


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(record: Path) -> None:
    click.echo(tables(json.loads(record.read_text())))


if __name__ == "__main__":
    main()
