"""What the HTML pages of evaluations share: the templates' settings, the style sheet, and how figures are written."""

from __future__ import annotations

import math
from importlib.resources import files

import jinja2
from markupsafe import Markup

from privgen.evaluation.intervals import Measured


def page_template(package: str, name: str) -> jinja2.Template:
    """Return a template, which knows the style sheet, `css`, and the filters `interval`, `interval_cell` and `number`.

    Args:
        package: that holds the template, and those that it imports.
        name: path of the template's file in the package.
    """

    def text_of(path: str) -> str:
        return files(package).joinpath(path).read_text(encoding="utf-8")

    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(text_of),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"interval": interval, "interval_cell": _interval_cell, "number": _number}
    environment.globals["css"] = files("privgen.evaluation").joinpath("page.css").read_text(encoding="utf-8")
    return environment.get_template(name)


def interval(measured: Measured | None) -> str:
    """Return a value with its interval, such as "0.95 [0.91, 0.98]", or alone where there is no interval."""
    value, bounds = _parts(measured)
    return f"{value} {bounds}".rstrip()


def _interval_cell(measured: Measured | None) -> Markup:
    """The same for a cell of a table, with the interval below the value."""
    value, bounds = _parts(measured)
    return Markup("{}<br><small>{}</small>").format(value, bounds) if bounds else Markup(value)


def _parts(measured: Measured | None) -> tuple[str, str]:
    """A value and its interval, which is empty where there is none."""
    if measured is None or not math.isfinite(measured.value):
        return "–", ""
    if not (math.isfinite(measured.low) and math.isfinite(measured.high)):
        return f"{measured.value:.3g}", ""
    return f"{measured.value:.3g}", f"[{measured.low:.3g}, {measured.high:.3g}]"


def _number(measured: Measured, form: str) -> str:
    return form % measured.value if math.isfinite(measured.value) else "–"
