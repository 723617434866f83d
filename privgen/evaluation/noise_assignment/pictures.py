"""Charts of quality as models learn."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from privgen.evaluation.noise_assignment.runs import Checkpoint
from privgen.io.plots import as_image, new_panels


Curves = Mapping[str, Mapping[str, Sequence[Sequence[Checkpoint]]]]
"""By setting and method, the curve of every seed; all curves have the same checkpoints."""


def draw_curves(curves: Curves, figure_of_merit: str, *, against: str = "step") -> Image.Image | None:
    """Draw a panel for each setting and number of sampling steps, with every seed and the mean of each method.

    Args:
        curves: the curves of all runs.
        figure_of_merit: "fd", "coverage" or "accuracy".
        against: "step" or "seconds", the horizontal axis.

    Returns:
        The chart; None if no setting has that figure.
    """
    shown = [(name, steps) for name in curves for steps in _sampling(curves[name], figure_of_merit)]
    if not shown:
        return None
    figure, panels = new_panels(len(shown), columns=3, width=4.4, height=3.3)
    for axes, (name, steps) in zip(panels, shown, strict=True):
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
    return as_image(figure)


def _sampling(methods: Mapping[str, Sequence[Sequence[Checkpoint]]], figure_of_merit: str) -> list[str]:
    """The numbers of sampling steps for which a figure was measured."""
    first = next((run[-1] for runs in methods.values() for run in runs), None)
    return [] if first is None else [steps for steps, found in first.quality.items() if figure_of_merit in found]
