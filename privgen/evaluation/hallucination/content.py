"""Whether samples have less wrong in them because there is less in them.

A board after no move is easily right. A method that draws more of these has fewer hallucinations and a coverage that
hardly falls, because every other board is near them. So hallucinated shares are compared at equal content as well.
"""

import math
from collections.abc import Mapping

from torch import Tensor


MOST = 8
"""What has more in it counts as so much."""


def content_figures(content: Tensor, wrong: Tensor) -> dict[str, float]:
    """The mean content, and for each content the share of samples that have it and how many of these are wrong.

    Args:
        content: (N,), whole numbers from 0.
        wrong: (N,) bool.
    """
    figures = {"content": float(content.double().mean())}
    capped = content.clamp(max=MOST)
    for k in range(MOST + 1):
        there = capped == k
        figures[_fraction(k)] = float(there.double().mean())
        figures[_wrong(k)] = float(wrong[there].double().mean()) if bool(there.any()) else math.nan
    return figures


def matched_reduction(row: Mapping[str, float], plain: Mapping[str, float]) -> float:
    """1 - the ratio of hallucinated shares, the method's to plain sampling's, if both had the content of the latter.

    A content that the method never shows counts as often wrong as with plain sampling.

    Args:
        row: with `content_figures` of the method.
        plain: the same of plain sampling.
    """
    before = after = 0.0
    for k in range(MOST + 1):
        share, wrong = plain[_fraction(k)], row[_wrong(k)]
        if share:
            before += share * plain[_wrong(k)]
            after += share * (plain[_wrong(k)] if math.isnan(wrong) else wrong)
    return 1 - after / before if before else math.nan


def without_strata(row: Mapping[str, float]) -> dict[str, float]:
    """A row without what `content_figures` says of each content."""
    strata = {name(k) for k in range(MOST + 1) for name in (_fraction, _wrong)}
    return {name: figure for name, figure in row.items() if name not in strata}


def _fraction(k: int) -> str:
    return f"fraction with content {k}"


def _wrong(k: int) -> str:
    return f"wrong with content {k}"
