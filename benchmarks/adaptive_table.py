"""The table of docs/results/adaptive.md, from a record of `privgen evaluate adaptive --json`.

python benchmarks/adaptive_table.py docs/results/adaptive-tile.json
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


HEADS = ["attack", "still found after removal, 1e-3", "1e-6", "PSNR", "found after forgery, 1e-3", "1e-6", "PSNR"]


def table(record: Mapping[str, Any]) -> str:
    """A row for each attacker: how often the mark is found after removing it, and after forging it."""
    removal, forgery = record["removal"], record["forgery"]
    rows = [[f"`{name}`", *_figures(removal.get(name)), *_figures(forgery.get(name))] for name in removal | forgery]
    return "\n".join("| " + " | ".join(row) + " |" for row in [HEADS, ["---"] * len(HEADS), *rows])


def _figures(found: Mapping[str, float] | None) -> list[str]:
    if found is None:
        return ["", "", ""]
    quality = f"{found['psnr_db']:.1f} dB" if "psnr_db" in found else ""
    return [f"{found['detected_1e-3']:.2f}", f"{found['detected_1e-6']:.2f}", quality]


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
def main(record: Path) -> None:
    click.echo(table(json.loads(record.read_text())))


if __name__ == "__main__":
    main()
