"""Plots of quality as models learn."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from privgen.evaluation.noise_assignment.runs import Checkpoint


Curves = Mapping[str, Mapping[str, Sequence[Sequence[Checkpoint]]]]
"""For each setting and method the curve of every seed, all of the same checkpoints."""


def draw_curves(curves: Curves, figure_of_merit: str, *, against: str = "step") -> Image.Image | None:
    """A panel for every setting and number of sampling steps: the mean over seeds of each method, and every seed.

    Args:
        curves: as `Curves`.
        figure_of_merit: "fd", "coverage" or "accuracy".
        against: "step" or "seconds".

    Returns:
        None if no setting has that figure.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(name, steps) for name in curves for steps in _sampling(curves[name], figure_of_merit)]
    if not panels:
        return None
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(4.4 * columns, 3.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    for i, (name, steps) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        for number, (method, runs) in enumerate(curves[name].items()):
            x = np.array([[getattr(point, against) for point in run] for run in runs], dtype=float)
            y = np.array([[point.quality[steps][figure_of_merit] for point in run] for run in runs], dtype=float)
            colour = f"C{number}"
            axes.plot(x.mean(0), y.mean(0), color=colour, label=method, marker="o", markersize=3)
            for seed_x, seed_y in zip(x, y, strict=True):
                axes.plot(seed_x, seed_y, color=colour, alpha=0.25, linewidth=0.7)
        axes.set_xscale("log")
        if figure_of_merit == "fd":
            axes.set_yscale("log")
        axes.set_title(f"{name}, {steps} sampling steps", fontsize=9)
        axes.set_xlabel({"step": "training steps", "seconds": "seconds of training"}[against], fontsize=8)
        axes.set_ylabel({"fd": "Frechet distance of features"}.get(figure_of_merit, figure_of_merit), fontsize=8)
        axes.legend(fontsize=6)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110, metadata={"Software": None})
    return Image.open(file).convert("RGB")


def _sampling(methods: Mapping[str, Sequence[Sequence[Checkpoint]]], figure_of_merit: str) -> list[str]:
    first = next((run[-1] for runs in methods.values() for run in runs), None)
    return [] if first is None else [steps for steps, found in first.quality.items() if figure_of_merit in found]
