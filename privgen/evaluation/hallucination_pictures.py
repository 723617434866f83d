"""Plots of hallucinations."""

import io
import math
from collections.abc import Mapping

from PIL import Image
from torch import Tensor

from privgen.data.toys import GaussianMixture
from privgen.evaluation.spread import Measured
from privgen.metrics.hallucination import validate_mixture


SHOWN = 2000
"""Samples in a panel."""


def draw_samples(samples: Mapping[str, Tensor], mixture: GaussianMixture) -> Image.Image:
    """One panel a method: valid samples blue, hallucinated ones red.

    Args:
        samples: by method, (B, 2).
        mixture: the data.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(5, len(samples))
    rows = math.ceil(len(samples) / columns)
    figure = Figure(figsize=(2.4 * columns, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (name, x) in enumerate(samples.items()):
        axes = figure.add_subplot(rows, columns, i + 1)
        wrong = validate_mixture(x, mixture).hallucinated[:SHOWN]
        for chosen, colour in ((~wrong, "tab:blue"), (wrong, "tab:red")):
            points = x[:SHOWN][chosen]
            axes.scatter(points[:, 0].tolist(), points[:, 1].tolist(), s=0.6, color=colour)
        axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), xticks=[], yticks=[])
        axes.set_title(f"{name}: {float(wrong.double().mean()):.1%}", fontsize=8)
        axes.set_aspect("equal")
    return _picture(figure)


def draw_shares(methods: Mapping[str, Mapping[str, Measured]]) -> Image.Image:
    """Hallucinated shares with their intervals, one bar a method; those of real data as a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [name for name in methods if name != "data"]
    found = [methods[name]["hallucinated"] for name in names]
    figure = Figure(figsize=(6, 0.8 + 0.25 * len(names)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    reach = [[max(m.value - m.low, 0) for m in found], [max(m.high - m.value, 0) for m in found]]
    axes.barh(range(len(names)), [m.value for m in found], xerr=reach, color="tab:blue", ecolor="black")
    axes.axvline(methods["data"]["hallucinated"].value, color="tab:green", linestyle="--", label="real data")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("share hallucinated")
    axes.legend(fontsize=8)
    return _picture(figure)


def _picture(figure: object) -> Image.Image:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})  # type: ignore[attr-defined]
    return Image.open(file).convert("RGB")
