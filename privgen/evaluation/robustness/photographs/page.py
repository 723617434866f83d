"""The page of an evaluation on photographs: one HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from privgen.evaluation.pages import page_template
from privgen.evaluation.robustness.charts import styles
from privgen.evaluation.robustness.contestants import Contestant
from privgen.evaluation.robustness.log import Row
from privgen.evaluation.robustness.page import ExampleImage, enlarged_difference
from privgen.evaluation.robustness.photographs.images import Photographs
from privgen.evaluation.robustness.photographs.report import NOTE, PhotographsEvaluation
from privgen.evaluation.robustness.run import Batch, Comparison
from privgen.evaluation.robustness.scores import marked_p_values, matches_of
from privgen.evaluation.watermark.pictures import ENLARGED
from privgen.evaluation.watermark.readings import CLEAN, RATES


_SHOWN = 2  # photographs
_LARGEST = 768  # pixels of a side; of larger photographs the centre is shown


@dataclass(frozen=True)
class ExamplePhotograph:
    """One photograph, by each method.

    Attributes:
        plain: without a mark.
        marked: with the mark of each method, and the enlarged difference.
    """

    plain: ExampleImage
    marked: Sequence[tuple[ExampleImage, ExampleImage]]


def example_photographs(
    comparison: Comparison, photographs: Photographs, rows: Sequence[Row]
) -> list[ExamplePhotograph]:
    """The first photographs without and with marks, at their full size; of large ones the centre.

    Args:
        comparison: what was measured.
        photographs: the images.
        rows: all rows of all methods.
    """
    clean = {(row.method, row.image): row for row in rows if row.attack == CLEAN}
    examples = []
    for number, path in enumerate(photographs.paths[:_SHOWN]):
        batch = Batch(comparison, [number])
        height, width = batch.plain().shape[-2:]
        plain = ExampleImage(_centre(batch.plain()[0]), f"no mark: {path.name}, {width} x {height}")
        pairs = []
        for contestant in comparison.contestants:
            if comparison.numbers(contestant, None, [number]):
                marked = _marked(batch, contestant, clean[contestant.name, number], comparison)
                pairs.append((marked, enlarged_difference(marked, plain)))
        examples.append(ExamplePhotograph(plain, pairs))
    return examples


def draw_page(result: PhotographsEvaluation, examples: Sequence[ExamplePhotograph]) -> str:
    """The page as HTML that loads nothing else.

    Args:
        result: the figures.
        examples: the images.
    """
    return page_template("privgen.evaluation.robustness", "photographs/page.html.jinja").render(
        result=result,
        record=result.record(),
        rates=list(RATES),
        styles=styles(method.name for method in result.methods),
        examples=examples,
        enlarged=ENLARGED,
        note=NOTE,
    )


def _marked(batch: Batch, contestant: Contestant, row: Row, comparison: Comparison) -> ExampleImage:
    messages = contestant.messages(comparison.keys)
    matches, p = int(matches_of([row], messages)[0]), float(marked_p_values([row], messages)[0])
    quality = [f"{row.psnr_db:.1f} dB"] if row.psnr_db is not None else []
    quality += [f"visible difference {row.visible_de_p99:.1f}"] if row.visible_de_p99 is not None else []
    title = ", ".join([contestant.name, *quality])
    return ExampleImage(_centre(batch.marked(contestant)[0]), title, matches, contestant.n_bits, p)


def _centre(pixels: Tensor) -> Tensor:
    height, width = pixels.shape[-2:]
    top, left = max(height - _LARGEST, 0) // 2, max(width - _LARGEST, 0) // 2
    return pixels[:, top : top + _LARGEST, left : left + _LARGEST]
