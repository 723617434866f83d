"""The table of docs/results/noise-assignment.md, from the record of `privgen evaluate training --json`.

python benchmarks/training_table.py docs/results/training.json
"""

import json
from pathlib import Path
from typing import Any

import click


def table(record: dict[str, Any]) -> str:
    """A row for each setting and a column for each method; the method that "auto" chooses is bold."""
    settings = record["settings"]
    methods = list(dict.fromkeys(method for row in settings.values() for method in row["methods"]))
    lines = [" | ".join(["| setting", "vanilla's distance", *methods]) + " |", "|---" * (2 + len(methods)) + "|"]
    for name, row in settings.items():
        cells = [_ratio(row["methods"].get(method), bold=method == row["auto"]) for method in methods]
        lines.append(" | ".join([f"| {name}", f"{row['vanilla']['fd']['value']:.2f}", *cells]) + " |")
    return "\n".join(lines)


def _ratio(row: dict[str, Any] | None, *, bold: bool) -> str:
    if row is None or row["steps_ratio"]["value"] is None:
        return "-"
    value, low, high = (row["steps_ratio"][key] for key in ("value", "low", "high"))
    middle = f"**{value:.2f}**" if bold else f"{value:.2f}"
    return middle if low is None else f"{middle} ({low:.2f} to {high:.2f})"


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(record: Path) -> None:
    click.echo(table(json.loads(record.read_text())))


if __name__ == "__main__":
    main()
