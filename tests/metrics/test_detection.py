import math

import numpy as np
import pytest
from scipy.stats import binom

from privgen.metrics.detection import (
    bit_accuracy,
    calibration,
    certified_fpr,
    clopper_pearson,
    empirical_tpr,
    expected_tpr,
    rate,
    roc,
    true_positive_rate,
)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize("n", [5, 40])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_interval_covers(n, confidence):
    """For every true share the interval holds it with at least the stated probability: that is its definition."""
    ends = [clopper_pearson(k, n, confidence=confidence) for k in range(n + 1)]
    for share in np.linspace(0.01, 0.99, 33):
        holds = np.array([low <= share <= high for low, high in ends])
        assert binom.pmf(np.arange(n + 1), n, share)[holds].sum() >= confidence - 1e-12


def test_interval_ends():
    assert clopper_pearson(0, 10) == (0.0, pytest.approx(1 - 0.025 ** (1 / 10)))
    assert clopper_pearson(10, 10) == (pytest.approx(0.025 ** (1 / 10)), 1.0)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(1, 0, 0.95), (-1, 5, 0.95), (6, 5, 0.95), (1, 5, 1.0)])
def test_interval_of_nonsense(successes, n, confidence):
    with pytest.raises(ValueError, match="expected 0 <= successes <= n"):
        clopper_pearson(successes, n, confidence=confidence)


def test_rate():
    found = rate([True, False, True, True])
    assert (found.value, found.successes, found.n, found.confidence) == (0.75, 3, 4, 0.95)
    assert found.low < 0.75 < found.high
    with pytest.raises(ValueError, match="at least one result"):
        rate([])


@pytest.mark.parametrize("n", [300, 2300, 46_000])
def test_negatives_certify_three_over_n(n):
    assert certified_fpr(0, n) == pytest.approx(3 / n, rel=0.01)
    assert certified_fpr(0, n) == pytest.approx(1 - 0.05 ** (1 / n))
    assert certified_fpr(1, n) > certified_fpr(0, n)


def test_true_positive_rate():
    found = true_positive_rate([48, 41, 40, 30], 48, 1e-6)
    assert (found.value, found.n) == (0.5, 4)
    assert true_positive_rate([48, 41, 40, 30], 48, 1e-3).value == 0.75
    assert true_positive_rate([16], 16, 1e-6).value == 0


@pytest.mark.parametrize(("accuracy", "tpr"), [(0.95, 0.998), (0.9, 0.9), (0.87, 0.72), (0.85, 0.57), (0.79, 0.18)])
def test_accuracy_is_not_detection(accuracy, tpr):
    assert expected_tpr(accuracy, 48, 1e-6) == pytest.approx(tpr, abs=0.006)


def test_expected_is_what_is_measured(rng):
    matches = rng.binomial(48, 0.9, 20_000)
    found = true_positive_rate(matches, 48, 1e-6)
    assert found.low <= expected_tpr(0.9, 48, 1e-6) <= found.high
    assert bit_accuracy(matches, 48) == pytest.approx(0.9, abs=0.002)


def test_empirical_threshold_by_hand():
    found = empirical_tpr([3, 5, 6, 9], [0, 1, 2, 3, 3, 4, 4, 4, 5, 6], 0.2)
    assert (found.threshold, found.fpr.value, found.tpr.value) == (5, 0.2, 0.75)
    strict = empirical_tpr([3, 5, 6, 9], [0, 1, 2, 3, 3, 4, 4, 4, 5, 6], 0)
    assert (strict.threshold, strict.fpr.value, strict.tpr.value) == (9, 0, 0.25)
    assert strict.certified_fpr == certified_fpr(0, 10)


def test_empirical_threshold_above_all():
    found = empirical_tpr([1, 2], [3, 4], 0.4)
    assert (found.threshold, found.tpr.value) == (math.inf, 0)


def test_empirical_agrees_with_theory(rng):
    positives, negatives = rng.binomial(48, 0.85, 5000), rng.binomial(48, 0.5, 200_000)
    assert empirical_tpr(positives, negatives, 1e-2).threshold == 33
    assert empirical_tpr(positives, negatives, 1e-2).tpr.value == pytest.approx(expected_tpr(0.85, 48, 1e-2), abs=0.02)


@pytest.mark.parametrize(("positives", "negatives", "fpr"), [([], [1], 0.1), ([1], [], 0.1), ([1], [1], 1.0)])
def test_empirical_of_nonsense(positives, negatives, fpr):
    with pytest.raises(ValueError, match="expected scores of both kinds"):
        empirical_tpr(positives, negatives, fpr)


def test_roc():
    false, true = roc([2, 3, 3], [1, 2])
    assert false.tolist() == [0, 0, 0.5, 1]
    assert true.tolist() == pytest.approx([0, 2 / 3, 1, 1])
    with pytest.raises(ValueError, match="expected scores of both kinds"):
        roc([], [1])


def test_roc_of_equal_scores_is_the_diagonal(rng):
    scores = rng.integers(0, 40, 500)
    false, true = roc(scores, scores)
    assert np.array_equal(false, true)


def test_calibration(rng):
    measured, theory = calibration(rng.binomial(48, 0.5, (500, 20)), 48)
    assert measured.shape == theory.shape == (49,)
    assert measured[0] == theory[0] == 1
    assert np.abs(measured - theory).max() < 0.02
