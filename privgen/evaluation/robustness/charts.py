"""Charts of a robustness evaluation: how many marks are found against what an attack costs in quality."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from privgen.evaluation.robustness.curves import LEVELS, Curve
from privgen.io.plots import new_figure


if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Style:
    """How a method is drawn; shapes tell methods apart where colours do not.

    Attributes:
        colour: as CSS and matplotlib write it.
        marker: matplotlib's name of the shape.
        sign: the same shape as a character, for legends in text.
    """

    colour: str
    marker: str
    sign: str


STYLES = (
    Style("#1f5fbf", "o", "●"),
    Style("#0f8a80", "s", "■"),
    Style("#c2540a", "D", "◆"),
    Style("#a3267e", "^", "▲"),
    Style("#6b7a00", "v", "▼"),
    Style("#7a4fd0", "x", "✕"),
)
"""Of the first method, the second, and so on; a seventh method looks like the first."""


def styles(names: Iterable[str]) -> dict[str, Style]:
    """The style of each method, by name.

    Args:
        names: of the methods, in the order of the results.
    """
    return {name: STYLES[place % len(STYLES)] for place, name in enumerate(names)}


def loss_range(curves: Sequence[Mapping[str, Curve]]) -> tuple[float, float]:
    """The range of losses that all charts show, so that you can compare them; at least from 0 to 1.

    Args:
        curves: of each method, by name of the attack.
    """
    losses = [loss for found in curves for curve in found.values() for loss in curve.losses]
    return min([0.0, *losses]), max([1.0, *losses])


def curve_chart(curves: Mapping[str, Curve], drawn_as: Mapping[str, Style], span: tuple[float, float]) -> Figure:
    """A chart of one attack: fraction of marks found against loss of quality, a line for each method.

    Args:
        curves: by method.
        drawn_as: the style of each method.
        span: losses at the left and right end of the axis, see `loss_range`.
    """
    figure = new_figure(3.2, 2.2)
    axes = figure.add_subplot()
    for level in LEVELS.values():
        axes.axhline(level, color="#8a8d94", linewidth=0.8, linestyle=(0, (4, 3)))
    for name, curve in reversed(list(curves.items())):  # so that the first method lies on top
        style = drawn_as[name]
        axes.plot(curve.losses, curve.rates, color=style.colour, marker=style.marker, markersize=4.5, linewidth=1.4)
    margin = 0.04 * (span[1] - span[0])
    axes.set(xlim=(span[0] - margin, span[1] + margin), ylim=(-0.05, 1.05), yticks=(0, 0.5, *LEVELS.values(), 1))
    axes.set_yticklabels(["0", "0.5", *(f"{level:g}" for level in LEVELS.values()), ""])
    axes.tick_params(labelsize=7, colors="#55585f")
    axes.set_xlabel("loss of quality", fontsize=8, color="#55585f")
    axes.grid(color="#e4e2dd", linewidth=0.6)
    axes.spines[:].set_color("#c9c7c1")
    axes.set_axisbelow(True)
    return figure
