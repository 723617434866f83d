"""Tables of docs, from a record of `privgen evaluate objects --json`.

python benchmarks/objects_table.py docs/results/objects.json [--short]

Other options: --photographs, --written, --carriers and --goals.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click


Rows = list[list[str]]

JPEG_75 = "_jpeg_75"
NAMES = {
    "one_object": "one object",
    "two_objects": "two objects",
    "three_objects": "three objects",
    "overlap": "two that overlap",
    "crop_half": "one, half of the image",
    "pasted": "one, pasted elsewhere",
    "area_5": "5 % of the photograph",
    "area_10": "10 % of the photograph",
    "area_20": "20 % of the photograph",
    "area_30": "30 % of the photograph",
}
"""What readers call the settings."""

READ = {"bit_accuracy": "bits", "tpr_1e-3": "found at 1e-3", "tpr_1e-6": "found at 1e-6", "localisation_iou": "place"}
"""Columns of what is read, which come twice: before and after JPEG 75."""

WRITTEN = {
    "object_psnr": "quality, dB",
    "psnr_outside_db": "outside, dB",
    "background_bit_accuracy": "bits outside",
    "mask_iou": "mask",
}
"""Columns of how marks were written."""

SCENE_BITS = {
    "one_object": 0.99,
    "two_objects": 0.97,
    "three_objects": 0.96,
    "overlap": 0.9,
    "crop_half": 0.95,
    "pasted": None,
}
"""Fraction of the bits that was to be read in scenes; after JPEG 75, .05 less than was read before."""


CARRIER_BITS = {"latent": (0.99, 0.93, 0.92), "token": (0.95, 0.85, 0.85)}
"""Fraction of the bits that was to be read of one, two and three objects, at 29 dB."""
REGENERATED = (60, 100, 200)

SCENE_GOALS = {
    "object_psnr": ("quality, dB", 31),
    "mask_iou": ("mask", 0.75),
    "localisation_iou": ("place", 0.65),
    "psnr_outside_db": ("quality outside, dB", 50),
}
"""What was to be reached in scenes whose objects are where they were marked."""


def settings(figures: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """What is read in each setting, before and after JPEG 75."""
    rows = []
    for setting in _settings(figures):
        plain, saved = figures[setting], figures.get(setting + JPEG_75)
        size = [str(plain["bit_accuracy"]["n"]), _percent(plain, "area")]
        read = [_interval(plain, field) for field in READ]
        rows.append([NAMES[setting], *size, *read, *(_interval(saved, name) for name in ("bit_accuracy", "tpr_1e-6"))])
    return ["setting", "objects", "area of each", *READ.values(), "after JPEG 75: bits", "found at 1e-6"], rows


def written(record: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """How marks were written, and how often a key that owns nothing is found."""
    rows = []
    for kind in ("scenes", "photographs"):
        for setting in _settings(record[kind]):
            figures = record[kind][setting]
            values = [_interval(figures, field, 1 if "dB" in name else 3) for field, name in WRITTEN.items()]
            false = figures["false_owner_rate"]
            stranger = "" if false is None else f"{false['value']:.3f}, n = {false['n']}"
            rows.append([f"{kind}, {NAMES[setting]}", *values, stranger])
    return ["setting", *WRITTEN.values(), "false owner"], rows


def short(record: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """The table of the guide."""
    rows = []
    for kind, what in (("scenes", "scenes, 128 x 128"), ("photographs", "photographs, 512 x 512")):
        for setting in _settings(record[kind]):
            plain, saved = record[kind][setting], record[kind].get(setting + JPEG_75)
            if plain.get("object_psnr"):
                quality = f"{plain['object_psnr']['value']:.0f} dB"
                read = [*_found(plain), _number(plain, "localisation_iou"), *_found(saved)]
                rows.append([f"{what}, {NAMES[setting]}", _percent(plain, "area"), quality, *read])
    return ["objects", "area of each", "quality", "found", "bits", "place", "after JPEG 75: found", "bits"], rows


def carriers(record: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """The carriers at one quality, as they are and after JPEG 75 and regeneration."""
    rows = []
    for carrier, figures in record["carriers"].items():
        for setting in ("one_object", "two_objects", "three_objects"):
            plain = figures[setting]
            attacked = [
                figures[setting + suffix] for suffix in (JPEG_75, *(f"_regeneration_{t}" for t in REGENERATED))
            ]
            found = [_number(plain, "tpr_1e-3"), _number(plain, "tpr_1e-6")]
            read = [f"{_number(part, 'bits')}, {_number(part, 'tpr_1e-6')}" for part in attacked]
            rows.append(
                [f"`{carrier}`", NAMES[setting], str(plain["bits"]["n"]), _interval(plain, "bits"), *found, *read]
            )
    after = ["after JPEG 75", *(f"regenerated from {t}" for t in REGENERATED)]
    return ["carrier", "scene", "objects", "bits", "found at 1e-3", "at 1e-6", *after], rows


def goals(record: Mapping[str, Any]) -> tuple[list[str], Rows]:
    """What was to be reached, and what was."""
    scenes, photographs = record["scenes"], record["photographs"]
    rows: Rows = []

    def least(name: str, figures: Mapping[str, Any] | None, field: str, goal: float) -> None:
        if figures and figures.get(field):
            digits = 1 if "dB" in name else 3
            value = round(figures[field]["value"], digits)
            rows.append([name, f"at least {goal:g}", f"{value:.{digits}f}", "" if value >= goal else "missed"])

    def most(name: str, value: float, goal: float) -> None:
        rows.append([name, f"at most {goal:g}", f"{value:.3f}", "" if value <= goal else "missed"])

    for setting, bits in SCENE_BITS.items():
        plain, saved, name = scenes[setting], scenes[setting + JPEG_75], f"scenes, {NAMES[setting]}"
        if bits is not None:
            least(f"{name}: bits", plain, "bit_accuracy", bits)
            least(
                f"{name}: bits after JPEG 75", saved, "bit_accuracy", round(plain["bit_accuracy"]["value"] - 0.05, 3)
            )
        if setting in ("one_object", "two_objects", "three_objects"):
            least(f"{name}: found at 1e-6", plain, "tpr_1e-6", 0.95)
        if setting not in ("crop_half", "pasted"):
            for field, (what, goal) in SCENE_GOALS.items():
                least(f"{name}: {what}", plain, field, goal)
        if plain["false_owner_rate"]:
            most(f"{name}: false owner", plain["false_owner_rate"]["value"], 0.01)
        if (found := plain.get("background_bit_accuracy")) is not None:
            near = 0.45 <= found["value"] <= 0.55
            rows.append([f"{name}: bits outside", ".45 to .55", f"{found['value']:.3f}", "" if near else "missed"])
    for setting, goal in (("area_5", 0.9), ("area_10", 0.98), ("area_20", 0.98), ("area_30", 0.98), ("pasted", 0.95)):
        for field, what in (("bit_accuracy", "bits"), ("tpr_1e-6", "found at 1e-6")):
            least(f"photographs, {NAMES[setting]}: {what}", photographs.get(setting), field, goal)
    for setting in ("two_objects", "three_objects"):
        least(f"photographs, {NAMES[setting]}: quality, dB", photographs.get(setting), "object_psnr", 37)
    for carrier, bits in CARRIER_BITS.items():
        for setting, goal in zip(("one_object", "two_objects", "three_objects"), bits, strict=True):
            figures = record["carriers"].get(carrier, {}).get(setting)
            least(f"carrier {carrier}, {NAMES[setting]}: bits", figures, "bits", goal)
    most("time to generate with two marked objects, by time without", record["time_ratio"], 1.25)
    return ["what", "goal", "measured", ""], rows


def _settings(figures: Mapping[str, Any]) -> list[str]:
    return [setting for setting in figures if not setting.endswith(JPEG_75)]


def _interval(figures: Mapping[str, Any] | None, name: str, digits: int = 3) -> str:
    found = figures and figures.get(name)
    if not found:
        return ""
    low, high = found["low"], found["high"]
    if digits == 3:  # fractions, whose normal intervals may go beyond 1
        high = high and min(high, 1)
    between = "" if low is None or high is None else f" ({low:.{digits}f} to {high:.{digits}f})"
    return f"{found['value']:.{digits}f}{between}"


def _number(figures: Mapping[str, Any], name: str) -> str:
    return f"{figures[name]['value']:.2f}" if figures.get(name) else ""


def _percent(figures: Mapping[str, Any], name: str) -> str:
    return f"{100 * figures[name]['value']:.0f} %" if figures.get(name) else ""


def _found(figures: Mapping[str, Any] | None) -> list[str]:
    if not figures:
        return ["", ""]
    found = figures["tpr_1e-6"]
    return [f"{round(found['value'] * found['n'])} of {found['n']}", f"{figures['bit_accuracy']['value']:.3f}"]


@click.command(help=(__doc__ or "").split("\n")[0])
@click.argument("record", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--short", "what", flag_value="short", help="The guide's.")
@click.option("--photographs", "what", flag_value="photographs", help="What is read in photographs.")
@click.option("--written", "what", flag_value="written", help="How marks were written, and false owners.")
@click.option("--carriers", "what", flag_value="carriers", help="The carriers at one quality.")
@click.option("--goals", "what", flag_value="goals", help="What was to be reached, and what was.")
def main(record: Path, what: str | None) -> None:
    found = json.loads(record.read_text())
    tables = {"short": short, "written": written, "carriers": carriers, "goals": goals}
    heads, rows = tables[what](found) if what in tables else settings(found[what or "scenes"])
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *("| " + " | ".join(r) + " |" for r in rows)]
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
