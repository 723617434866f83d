"""Measured values with 95 % intervals: how far the truth may be, having measured so few images."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import binom, binomtest
from scipy.stats import t as student


@dataclass(frozen=True)
class Measured:
    """A measured value and its 95 % interval.

    Attributes:
        value: a mean, a median or a fraction.
        n: how many values or trials it was computed from.
        low: lower end of the interval; not a number where there are too few values for one.
        high: upper end of the interval; likewise.
    """

    value: float
    n: int
    low: float
    high: float


def fraction(hits: Iterable[bool]) -> Measured:
    """The fraction of trials that succeeded, with the exact interval of Clopper and Pearson (Biometrika 26, 1934).

    The interval stays exact at the ends: of N unmarked images without a single detection it says that at most a
    fraction of about 3.7 / N is detected.

    Args:
        hits: whether each trial succeeded, at least one.

    Raises:
        ValueError: no trials.
    """
    flags = [bool(hit) for hit in hits]
    if not flags:
        raise ValueError("expected at least one result, got none")
    interval = binomtest(sum(flags), len(flags)).proportion_ci(confidence_level=0.95, method="exact")
    return Measured(sum(flags) / len(flags), len(flags), float(interval.low), float(interval.high))


def mean(values: ArrayLike) -> Measured:
    """The mean of independent values, with the interval of the normal law.

    Args:
        values: at least one, of any shape; a single one has no interval.

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
    """The mean over a few seeds, with the interval of Student's t.

    Args:
        values: one a seed. Infinite values and those that are not numbers are left out; where none is left, the mean
            is not a number either.
    """
    x = np.asarray([value for value in values if math.isfinite(value)], dtype=np.float64)
    if x.size == 0:
        return Measured(math.nan, 0, math.nan, math.nan)
    half = float(student.ppf(0.975, x.size - 1) * x.std(ddof=1) / math.sqrt(x.size)) if x.size > 1 else math.nan
    middle = float(x.mean())
    return Measured(middle, x.size, middle - half, middle + half)


def median(values: Sequence[float]) -> Measured:
    """The median of independent values, with an interval between two of the sorted values.

    The interval holds for any distribution: how many of n values lie below the true median is Binomial(n, 1/2).

    Args:
        values: at least one; with fewer than six there is no interval.

    Raises:
        ValueError: no values.
    """
    x = np.sort(np.asarray(values, np.float64))
    if x.size == 0:
        raise ValueError("expected at least one value, got none")
    rank = int(binom.ppf(0.025, x.size, 0.5))
    low, high = (float(x[rank - 1]), float(x[x.size - rank])) if rank else (math.nan, math.nan)
    return Measured(float(np.median(x)), x.size, low, high)


def values(measures: Mapping[str, Measured]) -> dict[str, float]:
    """The values by name, without their intervals."""
    return {name: measured.value for name, measured in measures.items()}


def ci95(measures: Mapping[str, Measured]) -> dict[str, dict[str, float]]:
    """The intervals by name, as records hold them under `ci95`."""
    return {name: {"n": m.n, "low": m.low, "high": m.high} for name, m in measures.items()}
