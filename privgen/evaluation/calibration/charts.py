"""Plots of a calibration: empirical over nominal rates, and how often each bit is 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image
from scipy.stats import binom

from privgen.evaluation.calibration.rates import bias_by_chance
from privgen.evaluation.calibration.readings import NOMINAL
from privgen.io.plots import as_image, new_panels


ALL = "all"
"""What results call all images together."""

_COLOURS = {ALL: "black", "scenes": "#1f5fbf", "generated": "#c2540a", "photographs": "#0f8a80", "folder": "#a3267e"}
_BAND = "#d9dbe0"


def rates_chart(curves: Mapping[str, Mapping[str, Sequence[float]]], readings: Mapping[str, int]) -> Image.Image:
    """Empirical over nominal rates, a panel for each kind of reading and a line for each source of images.

    The thick line is that of all sources together, and the grey band is where it would lie in 95 % of cases if
    p-values were exact and readings independent.

    Args:
        curves: fractions of readings with a p-value of at most each rate of `NOMINAL`, by kind and source, "all" among
            them.
        readings: of each kind, of all sources.
    """
    figure, panels = new_panels(len(curves), columns=3, width=3.6, height=3.2)
    nominal = np.array(NOMINAL)
    for axes, (kind, lines) in zip(panels, curves.items(), strict=True):
        n = readings[kind]
        least = 0.5 / n
        low, high = (np.maximum(binom.ppf(q, n, nominal) / n, least) for q in (0.025, 0.975))
        axes.fill_between(nominal, low, high, color=_BAND, linewidth=0, label="by chance")
        axes.plot(nominal, nominal, color="#55585f", linewidth=0.8, linestyle=(0, (4, 3)))
        for source, values in lines.items():
            rates = np.array(values)
            some, width = rates > 0, 2.2 if source == ALL else 0.9
            axes.plot(nominal[some], rates[some], color=_COLOURS[source], linewidth=width, label=source)
        axes.set(xscale="log", yscale="log", xlim=(max(NOMINAL[-1], 0.1 / n), 1), ylim=(least, 1.5))
        axes.set_title(f"{kind.replace('_', ' ')}, {n:,} readings", fontsize=9)
        axes.set(xlabel="nominal rate", ylabel="measured rate")
    panels[0].legend(fontsize=7, loc="upper left")
    return as_image(figure)


def bits_chart(bits: Mapping[str, Mapping[str, ArrayLike]]) -> Image.Image:
    """How often each bit is 1, a panel for each kind of reading and a line for each source.

    Dotted lines are the limits that the furthest of all fair bits exceeds in one case of twenty.

    Args:
        bits: (n, n_bits) of 0 and 1, by kind and source.
    """
    figure, panels = new_panels(len(bits), columns=2, width=5, height=3)
    for axes, (kind, sources) in zip(panels, bits.items(), strict=True):
        for source, values in sources.items():
            rows = np.asarray(values)
            axes.plot(rows.mean(0), ".-", color=_COLOURS[source], linewidth=0.8, label=f"{source}, {len(rows)}")
            for sign in (-1, 1):
                limit = 0.5 + sign * bias_by_chance(*rows.shape)
                axes.axhline(limit, color=_COLOURS[source], linewidth=0.8, linestyle=":")
        axes.axhline(0.5, color="black", linewidth=0.8)
        axes.set(ylim=(0, 1), xlabel="bit", ylabel="fraction of ones")
        axes.set_title(kind, fontsize=9)
        axes.legend(fontsize=7, loc="upper left")
    return as_image(figure)
