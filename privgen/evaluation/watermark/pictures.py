"""Pictures of a watermark evaluation: what marks look like, and how unmarked images are read."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from privgen.data.sheets import contact_sheet, picture
from privgen.evaluation.watermark.calibration import tails
from privgen.evaluation.watermark.marking import Example
from privgen.io.plots import as_image, new_panels
from privgen.watermark.read.p_values import threshold_matches


if TYPE_CHECKING:
    from matplotlib.axes import Axes


ENLARGED = 10
"""Factor on differences, so that you can see them."""

_LONGEST = 384  # longest side in pixels of a photograph on a sheet
_TRIPLES = 2  # examples in a row


def marks_sheet(examples: Sequence[Example]) -> Image.Image:
    """A sheet that shows each image without the mark, with it, and ten times the difference around grey.

    Args:
        examples: at least one; large images are made smaller.
    """
    pictures, captions = [], []
    for example in examples:
        difference = 0.5 + ENLARGED * (example.marked - example.plain)
        pictures += [_small(pixels) for pixels in (example.plain, example.marked, difference)]
        found = f"marked: {example.matches} of {example.n_bits} bits, p = {example.p_value:.1e}"
        captions += [f"plain: {example.title}", found, f"difference x {ENLARGED}, {example.psnr_db:.1f} dB"]
    return contact_sheet(pictures, captions, 3 * _TRIPLES)


def draw_negatives(matches: ArrayLike, n_bits: int) -> Image.Image:
    """A plot of how many bits unmarked images share with keys, beside Binomial(n_bits, 1/2): histogram and tails.

    Args:
        matches: bits of pairs of an image and a key that agree, 0..n_bits; any shape.
        n_bits: number of bits.
    """
    counts = np.bincount(np.ravel(matches), minlength=n_bits + 1)
    measured, binomial = tails(matches, n_bits)
    figure, (histogram, tail) = new_panels(2, columns=2, width=5, height=4)
    k = np.arange(n_bits + 1)
    histogram.bar(k, counts / counts.sum(), color="tab:blue", alpha=0.6, label="unmarked images")
    histogram.plot(k, -np.diff(binomial, append=0), "k.-", linewidth=0.8, label=f"Binomial({n_bits}, 1/2)")
    histogram.set_ylabel("fraction of pairs")
    _draw_tails(tail, measured, binomial, 1 / counts.sum())
    for axes in (histogram, tail):
        axes.set_xlabel(f"matches of {n_bits} bits")
        axes.legend(fontsize=9)
        axes.grid(alpha=0.3)
    return as_image(figure, dpi=100)


def _draw_tails(axes: "Axes", measured: NDArray[np.float64], binomial: NDArray[np.float64], least: float) -> None:
    n_bits = len(binomial) - 1
    seen = measured > 0
    axes.semilogy(np.arange(n_bits + 1)[seen], measured[seen], ".-", color="tab:blue", label="unmarked images")
    axes.semilogy(np.arange(n_bits + 1), binomial, "k-", linewidth=0.8, label="binomial")
    axes.axhline(least, color="grey", linestyle=":", label="one pair")
    for fpr in (1e-3, 1e-6):
        if (threshold := threshold_matches(n_bits, fpr)) <= n_bits:
            axes.axvline(threshold, color="tab:red", linewidth=0.8, linestyle="--")
            axes.text(threshold, 1, f"{fpr:g}", color="tab:red", fontsize=8, va="top")
    axes.set_ylim(1e-7, 1.5)
    axes.set_ylabel("fraction of pairs with at least so many")


def _small(pixels: Tensor) -> Image.Image:
    image = picture(pixels.numpy())
    image.thumbnail((_LONGEST, _LONGEST), Image.Resampling.LANCZOS)
    return image
