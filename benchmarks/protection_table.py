"""Tables of README and docs, from a record of `privgen evaluate protection --json`.

python benchmarks/protection_table.py docs/results/protection.json [--short | --purified | --fractions | --latents]
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


Rows = list[list[str]]

ADVERSARIES = {"lora": "LoRA", "prompt-embeds": "textual inversion behind the encoder"}
"""What readers call the adversaries."""

SHORT = {
    "as they are": ("lora", ""),
    "after JPEG 75": ("lora", "jpeg"),
    "textual inversion behind the encoder": ("prompt-embeds", ""),
    "the same after JPEG 75": ("prompt-embeds", "jpeg"),
}
"""Columns of the README's table: adversary and purification."""


def short(record: Mapping[str, Any], model: str) -> tuple[list[str], Rows]:
    """What each method takes from two adversaries, before and after purification."""
    adversaries = record["models"][model]
    rows = []
    for name in adversaries["lora"]:
        found = [adversaries[adversary].get(name, {}) for adversary, _ in SHORT.values()]
        purified = [purification for _, purification in SHORT.values()]
        figures = [one.get("purified", {}).get(how) if how else one for one, how in zip(found, purified, strict=True)]
        if name != "clean":
            cost = [_number(found[0].get(field)) for field in ("visible_de_p99", "seconds_per_image")]
            rows.append([name, *cost, *(_interval(one, "drop") for one in figures)])
    return ["images", "visible difference", "seconds an image", *SHORT], rows


def methods(record: Mapping[str, Any], model: str) -> tuple[list[str], Rows]:
    """The success of each adversary at each training length, what each method takes from it, and at what cost."""
    heads = ["adversary, images", "n", "success by steps", "drop", "drop over noise", "cost factor", "similarity"]
    rows = []
    for adversary, found in record["models"][model].items():
        for name, figures in found.items():
            by_steps = " / ".join(f"{_number(value)} at {steps}" for steps, value in figures["success"].items())
            values = [_interval(figures, field) for field in ("drop", "drop_over_noise")]
            cost = "" if name == "clean" else str(figures["cost_factor_text"])
            similarity = _interval(figures, "feature_similarity")
            rows.append([f"{ADVERSARIES[adversary]}, {name}", str(figures["n"]), by_steps, *values, cost, similarity])
    return heads, rows


def variants(record: Mapping[str, Any], model: str, what: str) -> tuple[list[str], Rows]:
    """The drop of each method after each purification, or with each fraction of protected images."""
    heads: list[str] = []
    found = []
    for adversary, methods_of in record["models"][model].items():
        for name, figures in methods_of.items():
            after = figures.get(what, {})
            heads += [key for key in after if key not in heads]
            if after:
                found.append((f"{ADVERSARIES[adversary]}, {name}", figures, after))
    rows = [
        [name, _interval(plain, "drop"), *(_with_n(after.get(key)) for key in heads)] for name, plain, after in found
    ]
    return ["adversary, images", "as they are" if what == "purified" else "1", *heads], rows


def latents(record: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """The shift of latents over that of noise of the same PSNR, and what JPEG leaves of it."""
    heads = ["method", "autoencoder", "shift", "over noise", "kept after JPEG 75"]
    names = ("shift", "over_noise", "kept")
    return heads, [
        [method, vae, *(_interval(figures, name) for name in names)]
        for method, found in record["latents"].items()
        for vae, figures in found.items()
    ]


def _with_n(figures: Mapping[str, Any] | None) -> str:
    return "" if figures is None else f"{_interval(figures, 'drop')}, n = {figures['n']}"


def _interval(figures: Mapping[str, Any] | None, name: str) -> str:
    if not figures or figures.get(name) is None:
        return ""
    low, high = (figures.get("ci95", {}).get(name, {}).get(end) for end in ("low", "high"))
    between = "" if low is None or high is None else f" ({low:.2f} to {high:.2f})"
    return f"{figures[name]:.2f}{between}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if abs(value) >= 3 else f"{value:.2f}"


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--short", "what", flag_value="short", help="The README's.")
@click.option("--purified", "what", flag_value="purified", help="After each purification.")
@click.option("--fractions", "what", flag_value="fractions", help="With each fraction of protected images.")
@click.option("--latents", "what", flag_value="latents", help="Shifts of latents.")
@click.option("--model", help="Which model; by default the first.")
def main(record: Path, what: str | None, model: str | None) -> None:
    found = json.loads(record.read_text())
    chosen = model or next(iter(found["models"]))
    if what == "latents":
        heads, rows = latents(found)
    elif what in ("purified", "fractions"):
        heads, rows = variants(found, chosen, what)
    else:
        heads, rows = (short if what == "short" else methods)(found, chosen)
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *("| " + " | ".join(r) + " |" for r in rows)]
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
