"""Check whether samples have less wrong in them only because there is less in them.

A chess board before the first move is easy to get right. A method that draws more of such boards has fewer
hallucinations, and its coverage hardly falls, because every other board is near them. So we also compare the fractions
of hallucinated samples at equal content.
"""

import math
from collections.abc import Mapping

from torch import Tensor


MAX_CONTENT = 8
"""Larger contents are counted as this one."""


def content_figures(content: Tensor, wrong: Tensor) -> dict[str, float]:
    """The mean content, and for each content the fraction of samples with it and the fraction of these that is wrong.

    Args:
        content: (N,), whole numbers from 0.
        wrong: (N,) bool.
    """
    figures = {"content": float(content.double().mean())}
    capped = content.clamp(max=MAX_CONTENT)
    for k in range(MAX_CONTENT + 1):
        has_k = capped == k
        figures[_fraction(k)] = float(has_k.double().mean())
        figures[_wrong(k)] = float(wrong[has_k].double().mean()) if bool(has_k.any()) else math.nan
    return figures


def matched_reduction(row: Mapping[str, float], plain: Mapping[str, float]) -> float:
    """The reduction of hallucinations if a method's samples had the contents of plain sampling.

    Args:
        row: of the method, with `content_figures`. A content that it never draws counts as wrong as often as with
            plain sampling.
        plain: the same of plain sampling.

    Returns:
        1 - the method's fraction of hallucinated samples over the plain one; not a number if the latter is 0.
    """
    before = after = 0.0
    for k in range(MAX_CONTENT + 1):
        weight, wrong = plain[_fraction(k)], row[_wrong(k)]
        if weight:
            before += weight * plain[_wrong(k)]
            after += weight * (plain[_wrong(k)] if math.isnan(wrong) else wrong)
    return 1 - after / before if before else math.nan


def without_strata(row: Mapping[str, float]) -> dict[str, float]:
    """A row without the figures for each single content."""
    strata = {name(k) for k in range(MAX_CONTENT + 1) for name in (_fraction, _wrong)}
    return {name: figure for name, figure in row.items() if name not in strata}


def _fraction(k: int) -> str:
    return f"fraction with content {k}"


def _wrong(k: int) -> str:
    return f"wrong with content {k}"
