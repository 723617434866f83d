"""Tables of README and docs, from a record of `privgen evaluate robustness --preset photographs --json`.

python benchmarks/photographs_table.py docs/results/photographs.json [--short | --methods]
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


SHORT = {
    "jpeg_50": "JPEG at quality 50",
    "jpeg_10": "JPEG at quality 10",
    "crop_0_5_size_own": "half of the area kept",
    "crop_0_1_size_own": "a tenth of the area kept",
    "border_0_1": "a white border",
    "collage_4": "in a collage of four",
    "rotation_15": "turned by 15 degrees",
    "flip_1": "mirrored",
    "scale_0_25": "a quarter of the size",
    "screenshot_1": "a screenshot",
    "whatsapp_1": "sent by WhatsApp",
    "vae_1": "through mini's autoencoder",
}
"""Rows of the README, and what they are called there."""


def attacks(record: Mapping[str, Any], rows: Mapping[str, str]) -> str:
    """Rates of detection of each method at 1e-3 / 1e-6, after each attack."""
    methods = _methods(record)
    lines = []
    for key, name in rows.items():
        if any(key in method["attacks"] for method in methods.values()):
            lines.append([name, *(_rates(method["attacks"].get(key)) for method in methods.values())])
    lines.append(["**mean of all attacks**", *(_rates(method, "mean_tpr") for method in methods.values())])
    return _table(["attack", *methods], lines)


def methods(record: Mapping[str, Any]) -> str:
    """What the marks look like, and how often unmarked photographs are called marked."""
    names = {"psnr_db": "PSNR, dB", "visible_de_p99": "visible difference", "ssim": "SSIM"}
    rows = []
    for name, method in _methods(record).items():
        clean, false = method["clean"], method["false_positives"]
        quality = [_interval(method, figure) for figure in names]
        rows.append([name, str(clean["n"]), str(method["n_bits"]), *quality, f"{false['1e-3']:.3f}, n = {false['n']}"])
    return _table(["method", "n", "bits", *names.values(), "false positives at 1e-3"], rows)


def _methods(record: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {"privgen": record, **{name: found for name, found in record["baselines"].items() if found}}


def _rates(figures: Mapping[str, Any] | None, prefix: str = "tpr") -> str:
    if not figures or figures.get(f"{prefix}_1e-3") is None:
        return "-"
    return f"{figures[f'{prefix}_1e-3']:.2f} / {figures[f'{prefix}_1e-6']:.2f}"


def _interval(method: Mapping[str, Any], name: str) -> str:
    value, interval, digits = method.get(name), method["ci95"].get(name, {}), 3 if name == "ssim" else 1
    if value is None:
        return "-"
    low, high = interval.get("low"), interval.get("high")
    between = "" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{value:.{digits}f}{between}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--short", "what", flag_value="short", help="The README's table.")
@click.option("--methods", "what", flag_value="methods", help="Quality of the marks and false positives.")
def main(record: Path, what: str | None) -> None:
    found = json.loads(record.read_text())
    if what == "methods":
        click.echo(methods(found))
    else:
        every = {key: f"`{key}`" for key in found["attacks"]}
        click.echo(attacks(found, SHORT if what == "short" else every))


if __name__ == "__main__":
    main()
