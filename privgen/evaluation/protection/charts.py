"""Charts of a study of protection: success of the adversary against its training steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from privgen.evaluation.protection.plan import CLEAN, CONTROL
from privgen.evaluation.protection.scores import HALF
from privgen.evaluation.protection.summary import Outcome
from privgen.io.plots import new_figure


if TYPE_CHECKING:
    from matplotlib.figure import Figure


COLOURS = ("#1f5fbf", "#c2540a", "#0f8a80", "#a3267e", "#6b7a00", "#7a4fd0", "#b5423c")
MARKERS = "sD^v<>p"


def effort_chart(curves: Mapping[str, Outcome]) -> Figure:
    """Success against training steps, a line with its 95 % interval for each method.

    Args:
        curves: outcomes by method.
    """
    figure = new_figure(5.2, 3.4)
    axes = figure.add_subplot()
    axes.axhline(HALF, color="#8a8d94", linewidth=0.8, linestyle=(0, (4, 3)))
    named = [name for name in curves if name not in (CLEAN, CONTROL)]
    for name, outcome in curves.items():
        if not outcome.n:
            continue
        place = named.index(name) if name in named else 0
        colour = {CLEAN: "#1d1f24", CONTROL: "#8a8d94"}.get(name, COLOURS[place % len(COLOURS)])
        marker = "o" if name not in named else MARKERS[place % len(MARKERS)]
        steps = [0, *outcome.success]
        axes.plot(
            steps,
            [0.0, *(found.value for found in outcome.success.values())],
            color=colour,
            marker=marker,
            markersize=4.5,
            linewidth=1.4,
            label=name,
        )
        low, high = ([0.0, *(getattr(m, end) for m in outcome.success.values())] for end in ("low", "high"))
        axes.fill_between(steps, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xlabel("training steps", fontsize=8)
    axes.set_ylabel("success of the adversary", fontsize=8)
    axes.set_ylim(-0.35, 1.35)
    axes.tick_params(labelsize=7)
    axes.grid(color="#e4e2dd", linewidth=0.6)
    axes.set_axisbelow(True)
    if axes.lines[1:]:
        axes.legend(fontsize=7, loc="upper left", ncols=2)
    return figure
