"""Charts of a robustness evaluation as SVG texts, which take their colours from the page that they are in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from privgen.evaluation.intervals import Measured
from privgen.evaluation.robustness.scores import LEVELS, Curve


WIDTH, HEIGHT = 300, 200
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 10, 10, 34

_MARKS = ("circle", "square", "diamond", "triangle", "cross", "ring")


def loss_range(curves: Sequence[Mapping[str, Curve]]) -> tuple[float, float]:
    """What the axes of losses of all methods' charts show, so that charts can be compared.

    Args:
        curves: of each method, by name of the attack.
    """
    losses = [loss for found in curves for curve in found.values() for loss in curve.losses]
    return min([0.0, *losses]), max([1.0, *losses])


def curve_chart(name: str, curves: Mapping[str, Curve], order: Sequence[str], span: tuple[float, float]) -> str:
    """Rate of detection against loss of quality under one attack, a line a method.

    Args:
        name: of the attack.
        curves: by method; those without a curve are left out.
        order: of the methods, which says their colours and marks.
        span: losses at the ends of the axis.
    """
    drawn = [_line(curves[method], method, order.index(method), span) for method in order if method in curves]
    label = f"{name}: share of marks found at 1e-3 against loss of quality"
    head = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(label)}">'
    return "".join([head, _axes(span), *drawn, "</svg>"])


def legend_mark(place: int) -> str:
    """The colour and mark of the method at a place, for a legend."""
    return f'<svg class="key" viewBox="-7 -7 14 14" aria-hidden="true">{_mark(0, 0, place, "")}</svg>'


def mean_bar(measured: Measured, place: int) -> str:
    """A share in [0, 1] as a bar with its interval."""
    x = [max(0.0, min(1.0, value)) * 100 for value in (measured.value, measured.low, measured.high)]
    whisker = "" if measured.low != measured.low else f'<path class="whisker" d="M{x[1]:.1f} 5H{x[2]:.1f}"/>'
    bar = f'<rect class="fill m{place}" width="{x[0]:.1f}" height="10" rx="1.5"/>'
    return f'<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{bar}{whisker}</svg>'


def _axes(span: tuple[float, float]) -> str:
    parts = []
    for level in sorted({0.0, 0.5, 1.0, *LEVELS.values()}):
        y = _y(level)
        kind = "level" if level in LEVELS.values() else "grid"
        parts.append(f'<path class="{kind}" d="M{_LEFT} {y:.1f}H{WIDTH - _RIGHT}"/>')
        if level != 1.0:
            parts.append(f'<text x="{_LEFT - 4}" y="{y + 3:.1f}" text-anchor="end">{level:g}</text>')
    step = 0.5 if span[1] - span[0] < 3 else 1.0
    ticks = [step * i for i in range(-20, 41) if span[0] <= step * i <= span[1]]
    for tick in ticks:
        x = _x(tick, span)
        parts.append(f'<path class="grid" d="M{x:.1f} {_TOP}V{HEIGHT - _BOTTOM}"/>')
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - _BOTTOM + 13}" text-anchor="middle">{tick:g}</text>')
    middle = (_LEFT + WIDTH - _RIGHT) / 2
    parts.append(f'<text x="{middle:.1f}" y="{HEIGHT - 6}" text-anchor="middle">loss of quality</text>')
    return "".join(parts)


def _line(curve: Curve, method: str, place: int, span: tuple[float, float]) -> str:
    points = [(_x(loss, span), _y(rate)) for loss, rate in zip(curve.losses, curve.rates, strict=True)]
    path = f'<path class="line m{place}" d="M{"L".join(f"{x:.1f} {y:.1f}" for x, y in points)}"/>'
    marks = [
        _mark(x, y, place, f"{method}, strength {strength:g}: {rate:.3f} found, loss of quality {loss:.2f}")
        for (x, y), strength, loss, rate in zip(points, curve.strengths, curve.losses, curve.rates, strict=True)
    ]
    return "".join([path if len(points) > 1 else "", *marks])


def _mark(x: float, y: float, place: int, title: str) -> str:
    """A method's mark; shapes tell methods apart where colours do not."""
    shapes = {
        "circle": '<circle r="3.6"/>',
        "square": '<rect x="-3.2" y="-3.2" width="6.4" height="6.4"/>',
        "diamond": '<path d="M0-4.6 4.6 0 0 4.6-4.6 0Z"/>',
        "triangle": '<path d="M0-4.2 4.2 3.4H-4.2Z"/>',
        "cross": '<path class="open" d="M-3.4-3.4 3.4 3.4M-3.4 3.4 3.4-3.4"/>',
        "ring": '<circle class="open" r="3.4"/>',
    }
    shape = shapes[_MARKS[place % len(_MARKS)]]
    label = f"<title>{escape(title)}</title>" if title else ""
    return f'<g class="mark m{place}" transform="translate({x:.1f} {y:.1f})">{label}{shape}</g>'


def _x(loss: float, span: tuple[float, float]) -> float:
    return _LEFT + (WIDTH - _LEFT - _RIGHT) * (loss - span[0]) / (span[1] - span[0])


def _y(rate: float) -> float:
    return _TOP + (HEIGHT - _TOP - _BOTTOM) * (1 - rate)
