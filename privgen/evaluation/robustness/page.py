"""The page of a robustness evaluation: one HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from privgen.data.sheets import encode_picture, picture
from privgen.evaluation.pages import page_template
from privgen.evaluation.robustness.charts import Style, curve_chart, loss_range, styles
from privgen.evaluation.robustness.report import NOTE, RobustnessEvaluation
from privgen.evaluation.watermark.pictures import ENLARGED
from privgen.io.plots import png_bytes, png_uri


COLUMNS = ("tpr_1e-3", "tpr_1e-6", "fpr_1e-3", "fpr_1e-6", "bit_accuracy", "psnr_db", "ssim", "quality_loss")
"""Figures of every attack, in the tables that are folded up."""

_PACKAGE = "privgen.evaluation.robustness"
_CHART_DPI = 180  # sharp on screens that show two dots for each CSS pixel


@dataclass(frozen=True)
class ExampleImage:
    """An image to show.

    Attributes:
        pixels: (3, H, W) in [0, 1].
        title: what it is.
        matches: bits that agree with the key.
        n_bits: bits of the message; 0 for an image that is not read.
        p_value: probability of so good an agreement without a mark, corrected for the search.
    """

    pixels: Tensor = field(repr=False)
    title: str
    matches: int = 0
    n_bits: int = 0
    p_value: float = 1.0

    @property
    def source(self) -> str:
        """The image as a data URI."""
        return png_uri(encode_picture(picture(self.pixels.numpy()), "example.png"))


@dataclass(frozen=True)
class Examples:
    """The images of the page.

    Attributes:
        plain: one image without a mark.
        marked: the same image with the mark of each method.
        attacked: the first method's marked image under every attack.
    """

    plain: ExampleImage
    marked: Sequence[ExampleImage]
    attacked: Sequence[ExampleImage]


def draw_page(result: RobustnessEvaluation, examples: Examples) -> str:
    """The page as HTML that loads nothing else.

    Args:
        result: the figures.
        examples: the images.
    """
    drawn_as = styles(method.name for method in result.methods)
    return page_template(_PACKAGE, "page.html.jinja").render(
        result=result,
        leading=next((method for method in result.methods if method.name == result.carrier), None),
        at_middle=sum(entry.middle for entry in result.planned),
        columns=COLUMNS,
        styles=drawn_as,
        charts=_charts(result, drawn_as),
        examples=examples,
        pairs=[(shown, enlarged_difference(shown, examples.plain)) for shown in examples.marked],
        enlarged=ENLARGED,
        note=NOTE,
    )


def _charts(result: RobustnessEvaluation, drawn_as: dict[str, Style]) -> dict[str, str]:
    """A chart for each attack that at least one method was measured under: data URIs by name of the attack."""
    span = loss_range([method.curves for method in result.methods])
    charts = {}
    for name in dict.fromkeys(entry.name for entry in result.planned):
        curves = {method.name: method.curves[name] for method in result.methods if name in method.curves}
        if curves:
            charts[name] = png_uri(png_bytes(curve_chart(curves, drawn_as, span), dpi=_CHART_DPI))
    return charts


def enlarged_difference(marked: ExampleImage, plain: ExampleImage) -> ExampleImage:
    """What a mark changes, enlarged so that you can see it, around grey."""
    title = f"{ENLARGED} x the difference of {marked.title}"
    return ExampleImage((0.5 + ENLARGED * (marked.pixels - plain.pixels)).clamp(0, 1), title)
