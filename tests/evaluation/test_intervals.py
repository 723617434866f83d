import math

import numpy as np
import pytest
from scipy.stats import binom

from privgen.evaluation.intervals import Measured, ci95, fraction, mean, median, over_seeds, values


@pytest.mark.parametrize("n", [5, 40])
def test_exact_interval_covers(n):
    """For every true fraction the interval holds it with at least 95 %: that is its definition."""
    ends = [fraction([True] * k + [False] * (n - k)) for k in range(n + 1)]
    for true in np.linspace(0.01, 0.99, 33):
        holds = np.array([found.low <= true <= found.high for found in ends])
        assert binom.pmf(np.arange(n + 1), n, true)[holds].sum() >= 0.95 - 1e-9


def test_fraction_by_hand():
    assert fraction([True, False, True, True]).value == 0.75
    # Without a single success, (1 - high)^n = 0.025; the other end is its mirror image.
    none, all_ = fraction([False] * 10), fraction([True] * 10)
    assert (none.low, none.high) == (0, pytest.approx(1 - 0.025 ** (1 / 10)))
    assert (all_.low, all_.high) == (pytest.approx(0.025 ** (1 / 10)), 1)
    assert fraction(np.zeros(46_000, bool)).high == pytest.approx(3.69 / 46_000, rel=0.01)
    assert fraction(hit for hit in (True, False)) == fraction([True, False])
    with pytest.raises(ValueError, match="at least one result"):
        fraction([])


def test_mean_by_hand():
    found = mean([[1.0, 2.0], [3.0, 6.0]])
    # The sample's standard deviation is sqrt(14 / 3).
    half = 1.96 * math.sqrt(14 / 3) / 2
    assert (found.value, found.n) == (3, 4)
    assert (found.low, found.high) == pytest.approx((3 - half, 3 + half))
    two = mean([1.0, 2.0])  # their standard deviation is sqrt(1 / 2)
    assert (two.low, two.high) == pytest.approx((1.5 - 0.98, 1.5 + 0.98))
    single = mean([1.0])
    assert (single.value, math.isnan(single.low)) == (1, True)
    with pytest.raises(ValueError, match="at least one value"):
        mean([])


def test_mean_over_seeds_by_hand():
    found = over_seeds([2.0, 4.0, math.inf, 6.0, math.nan])
    # Student's t at 97.5 % is 4.3027 with two degrees of freedom and 12.706 with one; deviations are 2 and sqrt(2).
    half = 4.30265 * 2 / math.sqrt(3)
    assert (found.value, found.n) == (4, 3)
    assert (found.low, found.high) == pytest.approx((4 - half, 4 + half), rel=1e-5)
    two = over_seeds([2.0, 4.0])
    assert (two.low, two.high) == pytest.approx((3 - 12.7062, 3 + 12.7062), rel=1e-5)
    single, none = over_seeds([1.0]), over_seeds([math.nan])
    assert (single.value, single.n, math.isnan(single.high)) == (1, 1, True)
    assert (math.isnan(none.value), none.n) == (True, 0)


def test_median_by_hand():
    found = median([5, 1, 4, 2, 3, 6])
    assert (found.value, found.n, found.low, found.high) == (3.5, 6, 1, 6)
    assert math.isnan(median([1.0, 2.0, 3.0, 4.0, 5.0]).low)
    with pytest.raises(ValueError, match="at least one value"):
        median([])


def test_median_interval_covers():
    samples = np.random.default_rng(0).normal(size=(1000, 25))
    assert 0.94 < np.mean([found.low <= 0 <= found.high for found in map(median, samples)]) < 0.99


def test_values_and_intervals_by_name():
    measures = {"tpr": Measured(0.5, 4, 0.1, 0.9)}
    assert values(measures) == {"tpr": 0.5}
    assert ci95(measures) == {"tpr": {"n": 4, "low": 0.1, "high": 0.9}}
