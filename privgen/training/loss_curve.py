"""Loss curves of training runs, read from their file and drawn."""

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING

from privgen.errors import PrivgenError
from privgen.io.files import write_bytes
from privgen.io.plots import new_panels, png_bytes


if TYPE_CHECKING:
    from matplotlib.axes import Axes


SMOOTHING = 0.02
"""Fraction of the curve, to either side, over which the drawn average is taken."""


def read_curve(jsonl: str | os.PathLike[str]) -> dict[str, list[tuple[int, float]]]:
    """Read the curves that a training loop has logged.

    Args:
        jsonl: file of the run. Each line is a JSON object with `step` and the numbers that were logged at it. A last
            line that was cut short is left out.

    Returns:
        For each name its (step, value) pairs; values that are not finite are left out.

    Raises:
        PrivgenError: the file cannot be read, or is no loss curve.
    """
    try:
        lines = Path(jsonl).read_text(encoding="utf-8").split("\n")
    except OSError as error:
        raise PrivgenError(f"{jsonl} cannot be read: {error.strerror}.") from error
    curves: dict[str, list[tuple[int, float]]] = {}
    # What follows the last line break is empty, or was being written when the run was killed.
    for number, line in enumerate(lines[:-1], 1):
        try:
            row = json.loads(line)
            step = int(row.pop("step"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise PrivgenError(f"{jsonl}, line {number}, is not from a loss curve.") from error
        for name, value in row.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                curves.setdefault(name, []).append((step, value))
    return curves


def draw_loss_curve(jsonl: str | os.PathLike[str], png: str | os.PathLike[str]) -> None:
    """Draw all numbers that a training loop has logged, each in a panel of its own.

    Args:
        jsonl: file of the run.
        png: picture to write; one that exists is replaced.

    Raises:
        PrivgenError: the file cannot be read or holds no numbers, or the picture cannot be written.
    """
    curves = read_curve(jsonl)
    if not curves:
        raise PrivgenError(f"{jsonl} holds no numbers yet; train for longer.")
    figure, panels = new_panels(len(curves), columns=math.ceil(math.sqrt(len(curves))), width=4.2, height=2.8)
    for axes, (name, points) in zip(panels, curves.items(), strict=True):
        _draw(axes, name, points)
    write_bytes(png, png_bytes(figure, dpi=100), overwrite=True)


def _draw(axes: "Axes", name: str, points: list[tuple[int, float]]) -> None:
    steps, values = [step for step, _ in points], [value for _, value in points]
    axes.plot(steps, values, color="tab:blue", alpha=0.35, linewidth=0.8, marker="." if len(points) == 1 else None)
    axes.plot(steps, _smooth(values), color="tab:blue", linewidth=1.5)
    # A fall over more than a decade is only visible on a logarithmic axis.
    if min(values) > 0 and max(values) > 10 * min(values):
        axes.set_yscale("log")
    axes.set_title(name.replace("_", " "), fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    axes.grid(alpha=0.3)


def _smooth(values: list[float]) -> list[float]:
    """A moving average that is narrower towards the ends, so that it lags nowhere."""
    n = len(values)
    reach = [min(i, n - 1 - i, round(SMOOTHING * n)) for i in range(n)]
    return [sum(values[i - r : i + r + 1]) / (2 * r + 1) for i, r in enumerate(reach)]
