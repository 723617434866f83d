"""The tables of docs/results, from records of `privgen evaluate robustness --json`, without and with `--robust-steps`.

python benchmarks/robustness_table.py docs/results/robustness.json [--short]
python benchmarks/robustness_table.py docs/results/robustness-16.json docs/results/robustness-robust-steps.json
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
"""Rows of the short table, and what they are called there."""


ROBUST = (*SHORT, "jpeg_10", "webp_10", "degradation_1", "regeneration_30", "regeneration_100", "rinse_4x", "vae_1")
"""Rows of the table of marks that were fitted to their image."""


def short(record: dict[str, Any], fitted: dict[str, Any] | None = None) -> str:
    """Rates of detection of each method at 1e-3, and of the default carrier at 1e-6, after the attacks of `SHORT`."""
    own, *others = _columns(record)
    columns = [own, *([("fitted, 1e-3", fitted, "tpr_1e-3")] if fitted else []), *others]
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


def compared(record: dict[str, Any], fitted: dict[str, Any]) -> str:
    """What robust steps change, by the default carrier, after the attacks of `ROBUST`."""
    figures = {"tpr_1e-3": "found at 1e-3", "tpr_1e-6": "at 1e-6", "bit_accuracy": "bits right"}
    rows = []
    for key in sorted(ROBUST):
        before, after = (_attack(r, key) for r in (record, fitted))
        rows.append((f"`{key}`", [after["n"], *(found[name] for name in figures for found in (before, after))]))
    heads = [head for name in figures.values() for head in (name, "fitted")]
    return _table(["attack", "n", *heads], rows)


def _columns(record: dict[str, Any]) -> list[tuple[str, Mapping[str, Any], str]]:
    """Head, method and rate of each column."""
    first = record["carrier"]
    others = {**{name: m for name, m in record["carriers"].items() if name != first}, **record["baselines"]}
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
@click.argument("fitted", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--short", "is_short", is_flag=True, help="Fewer attacks, in words.")
def main(record: Path, fitted: Path | None, is_short: bool) -> None:
    found, other = (json.loads(path.read_text()) if path else None for path in (record, fitted))
    if is_short:
        click.echo(short(found, other))
    else:
        click.echo(compared(found, other) if other else full(found))


if __name__ == "__main__":
    main()
