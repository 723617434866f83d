"""The tables of docs/explanation/p-values-and-search.md, from the record of `privgen evaluate calibration --json`.

python benchmarks/calibration_table.py docs/results/calibration.json
python benchmarks/calibration_table.py docs/results/calibration.json --bits
"""

import json
from pathlib import Path
from typing import Any

import click


def rates(record: dict[str, Any]) -> str:
    """A row for each kind of reading: the measured rate and its interval at each nominal one, of all images."""
    names = next(iter(record["kinds"].values()))["rates"]["all"].keys()
    lines = [
        "| reading | images | readings | " + " | ".join(f"at {name}" for name in names) + " | smallest p |",
        "|---" * (4 + len(names)) + "|",
    ]
    for kind, row in record["kinds"].items():
        cells = [_rate(row["rates"]["all"][name]) for name in names]
        counts = f"{row['images']} | {row['readings']:,}"
        lines.append(f"| `{kind}` | {counts} | {' | '.join(cells)} | {row['smallest']:.2g} |")
    return "\n".join(lines)


def bits(record: dict[str, Any]) -> str:
    """A row for each kind of reading and source: bias and correlation of bits, clean and where they are largest."""
    lines = [
        "| bits of | images | n | bias | by chance | largest bias | correlation | by chance | largest correlation |",
        "|---" * 9 + "|",
    ]
    for kind, sources in record["bits"].items():
        for source, rows in sources.items():
            clean = rows["clean"]
            cells = [f"`{kind}`", source, str(clean["n"])]
            for name in ("bit_bias", "correlation"):
                worst = max(rows, key=lambda distortion: rows[distortion][name])
                cells += [f"{clean[name]:.3f}", f"{clean[f'{name}_by_chance']:.3f}"]
                cells.append(f"{rows[worst][name]:.3f} ({worst})")
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(rate: dict[str, Any]) -> str:
    return f"{rate['value']:.2g} ({rate['low']:.2g} to {rate['high']:.2g})"


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--bits", "of_bits", is_flag=True, help="The table of bits instead of that of rates.")
def main(record: Path, of_bits: bool) -> None:
    found = json.loads(record.read_text())
    click.echo(bits(found) if of_bits else rates(found))


if __name__ == "__main__":
    main()
