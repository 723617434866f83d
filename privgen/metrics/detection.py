"""How well marks are found, with the uncertainty of having measured it on so many images.

Sources: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
Biometrika 26 (1934); Hanley and Lippman-Hand, "If nothing goes wrong, is everything all right?", JAMA 249 (1983), for
the rule that N negatives without a detection bound a false-positive rate by about 3 / N.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privgen.watermark.read.p_values import p_value, threshold_matches


@dataclass(frozen=True)
class Rate:
    """A share of successes, with an interval for the share behind it.

    Attributes:
        value: successes / n, in [0, 1].
        successes: how many.
        n: of how many.
        low: lower end of the interval.
        high: upper end of the interval.
        confidence: probability that the interval holds the true share, at least.
    """

    value: float
    successes: int
    n: int
    low: float
    high: float
    confidence: float = 0.95


@dataclass(frozen=True)
class EmpiricalRate:
    """A true-positive rate at a threshold that negatives have set.

    Attributes:
        tpr: share of positives at or above the threshold.
        fpr: share of negatives at or above it, at most the rate asked for.
        threshold: the score; infinite when no score keeps to the rate.
        certified_fpr: upper limit (one-sided, 95 %) of the false-positive rate at this threshold: with N negatives it
            is never below about 3 / N, however low the share among them.
    """

    tpr: Rate
    fpr: Rate
    threshold: float
    certified_fpr: float


def clopper_pearson(successes: int, n: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The exact confidence interval of a binomial share.

    Args:
        successes: 0..n.
        n: at least 1.
        confidence: in (0, 1).

    Returns:
        Lower and upper end.

    Raises:
        ValueError: an argument out of its range.
    """
    from scipy.stats import beta

    if n < 1 or not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(
            f"expected 0 <= successes <= n and a confidence in (0, 1), got {successes}, {n}, {confidence}"
        )
    tail = (1 - confidence) / 2
    low = float(beta.ppf(tail, successes, n - successes + 1)) if successes else 0.0
    high = float(beta.ppf(1 - tail, successes + 1, n - successes)) if successes < n else 1.0
    return low, high


def rate(hits: ArrayLike, *, confidence: float = 0.95) -> Rate:
    """The share of true values.

    Args:
        hits: booleans, any shape, at least one.
        confidence: of the interval.
    """
    flags = np.asarray(hits, dtype=bool)
    if flags.size == 0:
        raise ValueError("expected at least one result, got none")
    successes, n = int(flags.sum()), flags.size
    low, high = clopper_pearson(successes, n, confidence=confidence)
    return Rate(successes / n, successes, n, low, high, confidence)


def certified_fpr(false_positives: int, n: int, *, confidence: float = 0.95) -> float:
    """The upper limit that `n` negatives put on a false-positive rate; about 3 / n when none was detected.

    Args:
        false_positives: negatives that were detected.
        n: negatives.
        confidence: of the one-sided limit.
    """
    return clopper_pearson(false_positives, n, confidence=2 * confidence - 1)[1]


def true_positive_rate(matches: ArrayLike, n_bits: int, fpr: float) -> Rate:
    """The share of marked images that are detected at a false-positive rate, by the binomial threshold.

    Args:
        matches: bits of each marked image that agree with its key, 0..n_bits.
        n_bits: number of bits.
        fpr: false-positive rate for one key; divide it by the number of candidates first if there are several.
    """
    return rate(np.asarray(matches) >= threshold_matches(n_bits, fpr))


def empirical_tpr(positives: ArrayLike, negatives: ArrayLike, fpr: float) -> EmpiricalRate:
    """The share of marked images that are detected when unmarked ones set the threshold.

    Args:
        positives: scores of marked images, such as matches; larger is more marked.
        negatives: scores of unmarked images that went through the same attack.
        fpr: largest share of negatives that may be detected, in [0, 1).

    Returns:
        The rates at the lowest threshold that keeps to `fpr`.

    Raises:
        ValueError: no scores, or a rate out of its range.
    """
    marked, unmarked = np.ravel(positives).astype(np.float64), np.ravel(negatives).astype(np.float64)
    if marked.size == 0 or unmarked.size == 0 or not 0 <= fpr < 1:
        raise ValueError(
            f"expected scores of both kinds and a rate in [0, 1), got {marked.size}, {unmarked.size}, {fpr}"
        )
    scores = np.unique(np.concatenate([marked, unmarked]))
    passing = unmarked.size - np.searchsorted(np.sort(unmarked), scores, side="left")
    kept = scores[passing <= fpr * unmarked.size]
    threshold = float(kept[0]) if kept.size else np.inf
    false = rate(unmarked >= threshold)
    return EmpiricalRate(rate(marked >= threshold), false, threshold, certified_fpr(false.successes, false.n))


def expected_tpr(accuracy: float, n_bits: int, fpr: float) -> float:
    """The true-positive rate when each bit is read right with the same probability, independently.

    Args:
        accuracy: that probability, in [0, 1].
        n_bits: number of bits.
        fpr: false-positive rate of the binomial threshold.
    """
    from scipy.stats import binom

    return float(binom.sf(threshold_matches(n_bits, fpr) - 1, n_bits, accuracy))


def bit_accuracy(matches: ArrayLike, n_bits: int) -> float:
    """The mean share of bits read right; it says how good the channel is, not whether a mark is detected.

    Args:
        matches: any shape, 0..n_bits.
        n_bits: number of bits.
    """
    return float(np.asarray(matches, dtype=np.float64).mean()) / n_bits


def roc(positives: ArrayLike, negatives: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The curve of true against false positives over all thresholds.

    Args:
        positives: scores of marked images; larger is more marked.
        negatives: scores of unmarked images.

    Returns:
        False-positive and true-positive rates, both rising from 0 to 1.
    """
    marked, unmarked = np.sort(np.ravel(positives)), np.sort(np.ravel(negatives))
    if marked.size == 0 or unmarked.size == 0:
        raise ValueError(f"expected scores of both kinds, got {marked.size} and {unmarked.size}")
    thresholds = np.unique(np.concatenate([marked, unmarked]))[::-1]
    shares = (1 - np.searchsorted(scores, thresholds, side="left") / scores.size for scores in (unmarked, marked))
    false, true = (np.concatenate([[0.0], share]) for share in shares)
    return false, true


def calibration(matches: ArrayLike, n_bits: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The measured tail of unmarked images beside the binomial one; they agree when the extractor is whitened.

    Args:
        matches: unmarked images against keys, 0..n_bits.
        n_bits: number of bits.

    Returns:
        Share of `matches` >= k, and P(K >= k) for K ~ Binomial(n_bits, 1/2), for k = 0..n_bits.
    """
    counts = np.bincount(np.ravel(matches), minlength=n_bits + 1)
    measured = np.cumsum(counts[::-1])[::-1] / counts.sum()
    return measured, p_value(np.arange(n_bits + 1), n_bits)
