"""The tables of the README and of docs/evaluation.md, from the record of `privgen evaluate robustness --json`.

python benchmarks/robustness_table.py docs/results/robustness.json [--short]
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


SHORT = {
    "jpeg_50": "JPEG 50",
    "webp_50": "WebP 50",
    "blur_10": "blur, 10 px at 512",
    "noise_0_05": "noise, std .05",
    "brightness_1_5": "brightness x 1.5",
    "erase_0_125": "an eighth erased",
    "rotation_10": "turned by 10 degrees",
    "rotation_22_5": "turned by 22.5 degrees",
    "crop_0_75": "three quarters kept",
    "crop_0_5": "half kept",
    "degradation_0_5": "blur, noise and JPEG",
    "geometric_0_5": "turned, cropped and erased",
    "all_0_5": "all of these at once",
    "regeneration_60": "regeneration, 60 of 1000",
    "rinse_2x": "twice that",
    "diffpure_100": "DiffPure, t* = 100",
}
"""Rows of the README, and what they are called there."""


def short(record: dict[str, Any]) -> str:
    """Rates of detection of each method at 1e-3, and of the default carrier at 1e-6, after the attacks of `SHORT`."""
    columns = _columns(record)
    names = {key: label for key, label in SHORT.items() if key in record["attacks"]}
    mean = f"mean of {len(record['mean_over'])} distortions"
    rows = [(label, [_attack(method, key).get(rate) for _, method, rate in columns]) for key, label in names.items()]
    rows.append((mean, [method[f"mean_{rate}"] for _, method, rate in columns]))
    return _table(["attack", *(name for name, _, _ in columns)], rows)


def full(record: dict[str, Any]) -> str:
    """The same after every attack, with the number of images, the default carrier's false positives, bits and PSNR."""
    columns = _columns(record)
    more = ("fpr_1e-3", "bit_accuracy", "psnr_db")
    rows = []
    for key in record["attacks"]:
        if (own := _attack(record, key)) and own.get("n"):
            rates = [_attack(method, key).get(rate) for _, method, rate in columns]
            rows.append((f"`{key}`", [own["n"], *rates, *(own[figure] for figure in more)]))
    heads = ["false positives, 1e-3", "bits right", "PSNR, dB"]
    return _table(["attack", "n", *(name for name, _, _ in columns), *heads], rows)


def _columns(record: dict[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    """Head, method and rate of each column."""
    first = record["carrier"]
    others = {**{name: m for name, m in record["carriers"].items() if name != first}, **record["rivals"]}
    own = [(f"`{first}`, 1e-3", record, "tpr_1e-3"), (f"`{first}`, 1e-6", record, "tpr_1e-6")]
    return own + [(f"{name}, 1e-3", method, "tpr_1e-3") for name, method in others.items()]


def _attack(method: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    return method["attacks"].get(key) or {}


def _table(heads: list[str], rows: list[tuple[str, list[Any]]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    lines += ["| " + " | ".join([name, *map(_cell, values)]) + " |" for name, values in rows]
    return "\n".join(lines)


def _cell(value: float | int | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, int):
        return str(value)
    return f"{value:.1f}" if value > 1 else f"{value:.2f}"


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--short", "is_short", is_flag=True, help="The README's table.")
def main(record: Path, is_short: bool) -> None:
    found = json.loads(record.read_text())
    click.echo(short(found) if is_short else full(found))


if __name__ == "__main__":
    main()
