"""The page of a robustness evaluation: one HTML file with everything in it."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib.resources import files

from privgen.data.sheets import picture
from privgen.evaluation.intervals import Measured
from privgen.evaluation.robustness.charts import curve_chart, legend_mark, loss_range, mean_bar
from privgen.evaluation.robustness.report import NOTE, ExampleImage, Lead, MethodScores, RobustnessEvaluation
from privgen.evaluation.watermark.pictures import ENLARGED


_COLUMNS = ("tpr_1e-3", "tpr_1e-6", "fpr_1e-3", "fpr_1e-6", "bit_accuracy", "psnr_db", "ssim", "quality_loss")


def draw_page(result: RobustnessEvaluation) -> str:
    """The page as a text of HTML, which loads nothing.

    Args:
        result: what it shows.
    """
    style = files("privgen.evaluation.robustness").joinpath("page.css").read_text(encoding="utf-8")
    sections = [_summary(result), _methods(result), _curves(result), _rates(result), _pictures(result), _about(result)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Robustness of marks: {escape(str(result.settings['model']))}</title>\n"
        f"<style>\n{style}</style>\n</head>\n<body>\n<main>\n" + "\n".join(sections) + "\n</main>\n</body>\n</html>\n"
    )


def _summary(result: RobustnessEvaluation) -> str:
    model, n = escape(str(result.settings["model"])), result.settings["n"]
    lines = [f"<h1>How well marks survive: {model}</h1>"]
    leading = next((method for method in result.methods if method.name == result.carrier), None)
    if leading is not None and leading.means:
        found, count = leading.means["mean_tpr_1e-3"], sum(entry.middle for entry in result.planned)
        lines.append(
            f"<p>After {count} distortions at their middle strength, <b>{_percent(found)}</b> of the marks of the "
            f"carrier {escape(leading.name)} are still found, where an unmarked image would be called marked once in "
            f"1000 times; {_percent(leading.means['mean_tpr_1e-6'])} once in a million. {n} images.</p>"
        )
    if result.lead is not None:
        lines.append(f"<p>{_lead(result.lead)}</p>")
    return "\n".join(lines)


def _lead(lead: Lead) -> str:
    distance = f"{abs(lead.tpr.value):.3f} {'ahead of' if lead.tpr.value > 0 else 'behind'}"
    ahead = distance if lead.tpr.value else "level with"
    quality = lead.psnr_db.value
    worse = "less" if quality > 0 else "more"
    changes = "" if not math.isfinite(quality) else f", and changes the images {worse}, by {abs(quality):.1f} dB"
    return f"At 1e-3 that is {ahead} the best baseline, {escape(lead.baseline)}, on the same {lead.tpr.n} images{changes}."


def _methods(result: RobustnessEvaluation) -> str:
    head = (
        "method",
        "bits",
        "images",
        "PSNR",
        "SSIM",
        "found clean",
        "mean found at 1e-3",
        "",
        "at 1e-6",
        "pairs at 1e-3",
    )
    rows = []
    for place, method in enumerate(result.methods):
        mean = method.means.get("mean_tpr_1e-3")
        whose = "baseline" if method.baseline else "ours"
        rows.append(
            (
                f"{legend_mark(place)}{escape(method.name)} <small>{whose}</small>",
                str(method.n_bits),
                str(method.n),
                _number(method.clean["psnr_db"], "{:.1f} dB"),
                _number(method.clean["ssim"], "{:.3f}"),
                _number(method.clean["tpr_1e-3"], "{:.2f}"),
                "–" if mean is None else f"{_interval(mean)}",
                "" if mean is None else mean_bar(mean, place),
                "–" if mean is None else _number(method.means["mean_tpr_1e-6"], "{:.3f}"),
                _number(method.clean["fpr_1e-3"], "{:.4f}"),
            )
        )
    left_out = "".join(
        f"<p class='soft'>Not measured: {escape(k)}, {escape(v)}.</p>" for k, v in result.left_out.items()
    )
    text = (
        "<p class='soft'>PSNR and SSIM: of the marked image against the unmarked one. Means are over distortions at "
        "their middle strength. The last column is the share of pairs of an unmarked image and a key that are called "
        "marked; it should be near 0.001.</p>"
    )
    return f"<h2>Methods</h2>{text}{_table(head, rows)}{left_out}"


def _curves(result: RobustnessEvaluation) -> str:
    order = [method.name for method in result.methods]
    names = dict.fromkeys(entry.name for entry in result.planned)
    span = loss_range([method.curves for method in result.methods])
    cards = []
    for name in names:
        curves = {method.name: method.curves[name] for method in result.methods if name in method.curves}
        if curves:
            chart = curve_chart(name, curves, order, span)
            cards.append(f'<div class="card"><h3>{escape(name.replace("_", " "))}</h3>{chart}</div>')
    legend = "".join(f"<span>{legend_mark(place)}{escape(name)}</span>" for place, name in enumerate(order))
    text = (
        "<p>Share of marks found at a false-positive rate of 1e-3, against what the attack costs in quality, mild "
        "strengths on the left. Dashed: 0.95 and 0.70. Loss of quality is scaled as in WAVES: PSNR and SSIM, each "
        "with its 10 % and 90 % quantiles over all attacked images at 0.1 and 0.9, averaged. Turned and cropped "
        "images score badly by it, because they are compared in place.</p>"
    )
    charts = f'<div class="legend">{legend}</div><div class="grid">{"".join(cards)}</div>'
    return f"<h2>Performance against quality</h2>{text}{charts}"


def _rates(result: RobustnessEvaluation) -> str:
    head = ["attack", "strength", "images", *(method.name for method in result.methods)]
    rows = []
    for entry in result.planned:
        found = [method.attacks.get(entry.key) for method in result.methods]
        cells = [_rate_cell(figures) for figures in found]
        rows.append((escape(entry.key), f"{entry.strength:g} {escape(entry.unit)}", str(entry.n), *cells))
    missing = "".join(
        f"<li><code>{escape(entry.key)}</code>: {escape(entry.reason)}</li>"
        for entry in result.planned
        if entry.reason
    )
    not_run = f"<p>Not run, because something is missing:</p><ul>{missing}</ul>" if missing else ""
    details = "".join(
        f"<details><summary>All figures of {escape(method.name)}</summary>{_details(method)}</details>"
        for method in result.methods
    )
    text = (
        "<p class='soft'>Share of marks found at 1e-3, and below it at 1e-6. Point at a cell for its interval, or "
        "open all figures of a method.</p>"
    )
    return f"<h2>Every attack</h2>{text}{_table(head, rows)}{not_run}{details}"


def _rate_cell(figures: Mapping[str, Measured] | None) -> str:
    """A cell, opening tag and all, for `_table`."""
    if figures is None:
        return "–"
    rate, strict = figures["tpr_1e-3"], figures["tpr_1e-6"]
    tone = "var(--good)" if rate.value >= 0.5 else "var(--bad)"
    share = abs(rate.value - 0.5) * 0.7
    title = (
        f"{_interval(rate)} at 1e-3, {_interval(strict)} at 1e-6, n = {rate.n}; unmarked at 1e-3: "
        f"{figures['fpr_1e-3'].value:.4f}; bits right: {figures['bit_accuracy'].value:.3f}"
    )
    opening = f'<td class="rate" style="--tone: {tone}; --share: {share:.2f}" title="{escape(title)}">'
    return f"{opening}{rate.value:.2f}<br><small>{strict.value:.2f}</small></td>"


def _details(method: MethodScores) -> str:
    rows = [
        (escape(key), *(_interval(figures[name]) for name in _COLUMNS))
        for key, figures in method.attacks.items()
        if figures is not None
    ]
    crossings = [
        (escape(name), *(_crossing(found.quality_loss, found.state) for found in curve.crossings().values()))
        for name, curve in method.curves.items()
    ]
    columns = [name.replace("_", " ") for name in _COLUMNS]
    levels = ("attack", "loss of quality at which 0.95 are found", "0.70 are found")
    return f"{_table(('attack', *columns), rows)}<br>{_table(levels, crossings)}"


def _crossing(loss: float | None, state: str) -> str:
    return escape(state) if loss is None else f"{loss:.2f}"


def _pictures(result: RobustnessEvaluation) -> str:
    if not result.marked:
        return ""
    plain, *others = result.marked
    pairs = (f"<div>{_figure(shown)}{_figure(_difference(shown, plain))}</div>" for shown in others)
    marked, attacked = _figure(plain) + "".join(pairs), "".join(map(_figure, result.attacked))
    name = escape(result.methods[0].name)
    after = f"<h2>The mark of {name} under every attack</h2><div class='shots'>{attacked}</div>" if attacked else ""
    return f"<h2>One image, marked</h2><div class='shots'>{marked}</div>{after}"


def _difference(marked: ExampleImage, plain: ExampleImage) -> ExampleImage:
    """What a mark changes, so enlarged that it is seen."""
    title = f"{ENLARGED} x the difference of {marked.title}"
    return ExampleImage((0.5 + ENLARGED * (marked.pixels - plain.pixels)).clamp(0, 1), title, 0, 0)


def _figure(shown: ExampleImage) -> str:
    caption = escape(shown.title)
    if shown.n_bits:
        kind = "found" if shown.p_value <= 1e-3 else "lost"
        caption += f'<br><span class="{kind}">p = {shown.p_value:.1e}</span>, {shown.matches} of {shown.n_bits} bits'
    file = io.BytesIO()
    picture(shown.pixels.numpy()).save(file, format="PNG")
    source = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img src="data:image/png;base64,{source}" alt="{escape(shown.title)}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _about(result: RobustnessEvaluation) -> str:
    versions = {
        "privgen": result.environment.privgen,
        "Python": result.environment.python,
        **{name: version or "missing" for name, version in result.environment.packages.items()},
        "platform": result.environment.platform,
    }
    settings = [(escape(name), escape(str(value))) for name, value in result.settings.items()]
    rows = [(escape(name), escape(version)) for name, version in versions.items()]
    return (
        f"<h2>How this was measured</h2><p>{escape(NOTE)}</p><pre>{escape(result.command)}</pre>"
        f"<details><summary>Settings and versions</summary>{_table(('setting', 'value'), settings)}<br>"
        f"{_table(('package', 'version'), rows)}</details>"
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows of HTML; a cell that is one already stays as it is."""
    top = "".join(f"<th>{escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _percent(measured: Measured) -> str:
    return f"{100 * measured.value:.1f} %"


def _number(measured: Measured, form: str) -> str:
    return form.format(measured.value) if math.isfinite(measured.value) else "–"


def _interval(measured: Measured) -> str:
    """Value and interval; the value alone where there is no interval."""
    if not math.isfinite(measured.value):
        return "–"
    if not math.isfinite(measured.low):
        return f"{measured.value:.3g}"
    return f"{measured.value:.3g} [{measured.low:.3g}, {measured.high:.3g}]"
