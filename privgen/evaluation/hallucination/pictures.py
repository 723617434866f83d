"""Charts of hallucinations, and sheets of samples with what is wrong marked."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from privgen.data.sheets import Colour, contact_sheet, outline, picture
from privgen.evaluation.hallucination.chess_boards import SQUARE
from privgen.evaluation.hallucination.chess_rules import offending_squares, read_boards
from privgen.evaluation.intervals import Measured
from privgen.io.plots import as_image, new_panels
from privgen.metrics.shapes import offending_shapes


WRONG: Colour = (230, 30, 30)
"""Colour of what is wrong."""
_RIGHT: Colour = (150, 150, 150)
_FRAME = 2


def draw_points(samples: Mapping[str, tuple[Tensor, Tensor]]) -> Image.Image:
    """Draw a panel for each method, valid samples in blue and hallucinated ones in red.

    Args:
        samples: by method, the samples, (B, 2) or (B, 1), and which of them are hallucinated, (B,) bool. Samples of
            one number are spread along the other axis.
    """
    figure, panels = new_panels(len(samples), columns=5, width=2.4, height=2.6)
    for axes, (name, (x, wrong)) in zip(panels, samples.items(), strict=True):
        x = x if x.shape[1] == 2 else torch.cat([x, torch.linspace(-1, 1, len(x))[:, None]], 1)
        for chosen, colour in ((~wrong, "tab:blue"), (wrong, "tab:red")):
            axes.scatter(x[chosen, 0].tolist(), x[chosen, 1].tolist(), s=0.6, color=colour)
        axes.set(xlim=(-1.4, 1.4), ylim=(-1.4, 1.4), xticks=[], yticks=[])
        axes.set_title(f"{name}: {float(wrong.double().mean()):.1%}", fontsize=8)
        axes.set_aspect("equal")
    return as_image(figure)


def draw_fractions(methods: Mapping[str, Mapping[str, Measured]]) -> Image.Image:
    """Draw the fraction of hallucinated samples with its interval, a bar for each method and a line for real data."""
    names = [name for name in methods if name != "data"]
    found = [methods[name]["hallucinated"] for name in names]
    figure, (axes,) = new_panels(1, columns=1, width=6, height=0.8 + 0.25 * len(names))
    reach = [[max(m.value - m.low, 0) for m in found], [max(m.high - m.value, 0) for m in found]]
    axes.barh(range(len(names)), [m.value for m in found], xerr=reach, color="tab:blue", ecolor="black")
    axes.axvline(methods["data"]["hallucinated"].value, color="tab:green", linestyle="--", label="real data")
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("fraction hallucinated")
    axes.legend(fontsize=8)
    return as_image(figure)


def picture_rows(rows: Mapping[str, Sequence[tuple[NDArray[np.float32], bool]]], *, columns: int) -> Image.Image:
    """A strip of images for each method, hallucinated ones in a red frame.

    Args:
        rows: by method, images (3, H, W) in [0, 1] and whether each is hallucinated.
        columns: images in a line of a strip.
    """
    strips, captions = [], []
    for name, found in rows.items():
        strips.append(contact_sheet([_framed(pixels, wrong) for pixels, wrong in found], [""] * len(found), columns))
        captions.append(f"{name}: {sum(wrong for _, wrong in found)} of {len(found)} hallucinated")
    return contact_sheet(strips, captions, columns=1)


def mark_shapes(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Outline the shapes that `offending_shapes` finds.

    Args:
        pixels: (1, 64, 64) in [0, 1].

    Returns:
        (3, 64, 64) in [0, 1].
    """
    masks = [shape.mask for shape in offending_shapes(pixels)]
    colour = np.repeat(pixels, 3, axis=0)
    return outline(colour, np.stack(masks).astype(np.float32), [WRONG]) if masks else colour


def mark_board(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Frame the squares that `offending_squares` finds.

    Args:
        pixels: (3, 128, 128) in [0, 1].

    Returns:
        A new image of the same shape and range.
    """
    drawn, colour = pixels.copy(), np.asarray(WRONG, np.float32)[:, None, None] / 255
    for square in offending_squares(read_boards(torch.from_numpy(pixels)[None])[0]):
        y, x = SQUARE * (square // 8), SQUARE * (square % 8)
        inside = drawn[:, y + 1 : y + SQUARE - 1, x + 1 : x + SQUARE - 1].copy()
        drawn[:, y : y + SQUARE, x : x + SQUARE] = colour
        drawn[:, y + 1 : y + SQUARE - 1, x + 1 : x + SQUARE - 1] = inside
    return drawn


def _framed(pixels: NDArray[np.float32], wrong: bool) -> Image.Image:
    inner = picture(pixels)
    framed = Image.new("RGB", (inner.width + 2 * _FRAME, inner.height + 2 * _FRAME), WRONG if wrong else _RIGHT)
    framed.paste(inner, (_FRAME, _FRAME))
    return framed
