"""The page of a study of protection: one HTML file with everything in it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from privgen.evaluation.pages import page_template
from privgen.evaluation.protection.charts import effort_chart
from privgen.evaluation.protection.log import Row
from privgen.evaluation.protection.plan import CLEAN, CONTROL, NONE
from privgen.evaluation.protection.report import NOTE, ProtectionStudy
from privgen.evaluation.protection.summary import Outcome, Setting, cost_text
from privgen.io.plots import png_bytes, png_uri


@dataclass(frozen=True)
class Sheet:
    """Images of one method at every effort, side by side.

    Attributes:
        title: method and purification.
        images: by training steps, data URIs.
    """

    title: str
    images: dict[int, str] = field(repr=False)


@dataclass(frozen=True)
class Section:
    """What the page says about one adversary on one model.

    Attributes:
        model: name.
        adversary: name.
        sentences: what each protection does, in words.
        chart: data URI of the curves over effort.
        outcomes: of all settings, those without purification first.
        sheets: images of one subject, by method.
    """

    model: str
    adversary: str
    sentences: list[str]
    chart: str = field(repr=False)
    outcomes: list[tuple[Setting, Outcome]]
    sheets: list[Sheet]


def draw_page(result: ProtectionStudy, rows: Sequence[Row]) -> str:
    """The page as HTML that loads nothing else.

    Args:
        result: the figures.
        rows: of all cells; some hold images.
    """
    template = page_template("privgen.evaluation.protection", "page.html.jinja")
    pairs = dict.fromkeys((setting.model, setting.adversary) for setting in result.outcomes)
    sections = [_section(result, rows, model, adversary) for model, adversary in pairs]
    return template.render(result=result, sections=sections, cost=cost_text, note=NOTE)


def _section(result: ProtectionStudy, rows: Sequence[Row], model: str, adversary: str) -> Section:
    own = [(s, outcome) for s, outcome in result.outcomes.items() if (s.model, s.adversary) == (model, adversary)]
    plain = {s.method: outcome for s, outcome in own if (s.purification, s.fraction) == (NONE, 1)}
    return Section(
        model,
        adversary,
        [result.sentence(Setting(model, adversary, method)) for method in plain if method not in (CLEAN, CONTROL)],
        png_uri(png_bytes(effort_chart(plain), dpi=160)),
        sorted(own, key=lambda item: (item[0].purification != NONE, item[0].fraction != 1)),
        _sheets([row for row in rows if (row.cell.model, row.cell.adversary) == (model, adversary) and row.sheet]),
    )


def _sheets(rows: Sequence[Row]) -> list[Sheet]:
    """The images of each method at every effort, at the guidance scale with the best score."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        title = row.cell.method + ("" if row.cell.purification == NONE else f", {row.cell.purification}")
        best = found.setdefault(title, {})
        if row.effort not in best or row.score > best[row.effort].score:
            best[row.effort] = row
    return [Sheet(title, {effort: row.sheet for effort, row in best.items()}) for title, best in found.items()]
