"""Measured values with the uncertainty of having measured them on so many pictures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

from privgen.metrics.detection import rate


@dataclass(frozen=True)
class Measured:
    """A value and its 95 % interval.

    Attributes:
        value: a mean, or a share.
        n: of how many.
        low: lower end of the interval.
        high: upper end of the interval.
    """

    value: float
    n: int
    low: float
    high: float


def fraction(hits: Iterable[bool]) -> Measured:
    """The share of true values; its interval is the exact one of a binomial share (Clopper and Pearson)."""
    measured = rate(list(hits))
    return Measured(measured.value, measured.n, measured.low, measured.high)


def mean(values: ArrayLike) -> Measured:
    """The mean of independent values; its interval is the normal one, not a number where there is only one value.

    Raises:
        ValueError: no values.
    """
    x = np.ravel(values).astype(np.float64)
    if x.size == 0:
        raise ValueError("expected at least one value, got none")
    half = 1.96 * float(x.std(ddof=1)) / math.sqrt(x.size) if x.size > 1 else math.nan
    middle = float(x.mean())
    return Measured(middle, x.size, middle - half, middle + half)


def over_seeds(values: Sequence[float]) -> Measured:
    """The mean over seeds with its 95 % interval by Student's t; values that are none are left out."""
    x = np.asarray([value for value in values if math.isfinite(value)], dtype=np.float64)
    if x.size == 0:
        return Measured(math.nan, 0, math.nan, math.nan)
    half = float(student.ppf(0.975, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else math.nan
    return Measured(float(x.mean()), int(x.size), float(x.mean()) - half, float(x.mean()) + half)


def median(values: Sequence[float]) -> Measured:
    """The median of independent values; its interval is that of order statistics, for any distribution.

    Args:
        values: at least one; below six they are too few for an interval of 95 %.
    """
    from scipy.stats import binom

    x, n = np.sort(np.asarray(values, np.float64)), len(values)
    rank = int(binom.ppf(0.025, n, 0.5))
    low, high = (float(x[rank - 1]), float(x[n - rank])) if rank else (math.nan, math.nan)
    return Measured(float(np.median(x)), n, low, high)


def values(measures: Mapping[str, Measured]) -> dict[str, float]:
    """The values by name."""
    return {name: measured.value for name, measured in measures.items()}


def intervals(measures: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """The intervals by name, as records have them under `ci95`."""
    return {name: {"n": m.n, "low": m.low, "high": m.high} for name, m in measures.items()}


def finite(value: Any) -> Any:
    """A nested record, measured values in it, as JSON reads it back: what is not a number becomes None."""
    if isinstance(value, Measured):
        return finite(asdict(value))
    if isinstance(value, Mapping):
        return {str(name): finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
