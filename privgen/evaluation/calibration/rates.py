"""How often p-values of unmarked images are at most a rate, and whether that is more often than it should be."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import beta, chi2, norm, t

from privgen.evaluation.intervals import Measured


@dataclass(frozen=True)
class Rate(Measured):
    """How often a p-value was at most a nominal rate, with the 95 % interval.

    Attributes:
        nominal: the rate. A p-value keeps its promise if the true value is not above it.
        excess_p: probability of such a value or a larger one if the true rate is the nominal one.
    """

    nominal: float
    excess_p: float


def rate_over_images(hits: ArrayLike, readings: ArrayLike, nominal: float) -> Rate:
    """The fraction of readings whose p-value is at most a nominal rate; readings of one image may hang together.

    The variance between images, over that of independent readings, says by how much fewer readings count (the design
    effect, where it is above 1). With so many, and Student's t for few images, the interval is that of Clopper and
    Pearson (Korn and Graubard, "Confidence intervals for proportions with small expected number of positive counts",
    Survey Methodology 24, 1998).

    Args:
        hits: of each image, how many readings have a p-value of at most the rate.
        readings: of each image, how many there are.
        nominal: the rate.

    Raises:
        ValueError: no readings, or shapes that do not fit.
    """
    found, of = np.asarray(hits, np.float64), np.asarray(readings, np.float64)
    if found.shape != of.shape or of.ndim != 1 or not of.sum() > 0:
        raise ValueError(f"expected hits and readings of each image, got shapes {found.shape} and {of.shape}")
    total, images = float(of.sum()), len(of)
    value = float(found.sum() / total)
    counted = total
    if images > 1:
        independent = value * (1 - value) / total
        between = images / (images - 1) * float(np.square(found - value * of).sum()) / total**2
        effect = max(1.0, between / independent) if independent > 0 else 1.0
        few = float(t.ppf(0.975, max(total - 1, 1)) / t.ppf(0.975, images - 1))
        counted = total / effect * few**2
    hit, missed = value * counted, (1 - value) * counted
    low = float(beta.ppf(0.025, hit, missed + 1)) if hit else 0.0
    high = float(beta.ppf(0.975, hit + 1, missed)) if missed else 1.0
    excess = float(beta.cdf(nominal, hit, missed + 1)) if hit else 1.0
    return Rate(value, round(total), low, high, nominal, excess)


def bit_figures(bits: ArrayLike) -> dict[str, float]:
    """How far bits that were read from unmarked images are from tosses of fair and independent coins.

    Args:
        bits: (n, n_bits) of 0 and 1, n of at least 2.

    Returns:
        `n`; `bit_bias`, the largest |mean - 0.5| of a bit; `bias_chi2_p`, the probability that fair bits are as
        biased, all together (chi-square); `correlation`, the mean |correlation| of two bits; and `bit_bias_by_chance`
        and `correlation_by_chance`, which fair and independent bits exceed with a probability of 5 %. Bits that are
        always the same correlate with none.

    Raises:
        ValueError: fewer than two rows, or fewer than two bits.
    """
    rows = np.asarray(bits, np.float64)
    if rows.ndim != 2 or min(rows.shape) < 2:
        raise ValueError(f"expected bits (n, n_bits) with at least two of each, got shape {rows.shape}")
    n, n_bits = rows.shape
    means = rows.mean(0)
    spread = rows.std(0)
    standard = np.divide(rows - means, spread, out=np.zeros_like(rows), where=spread > 0)
    pairs = np.abs(standard.T @ standard / n)[np.triu_indices(n_bits, 1)]
    return {
        "n": n,
        "bit_bias": float(np.abs(means - 0.5).max()),
        "bit_bias_by_chance": bias_by_chance(n, n_bits),
        "bias_chi2_p": float(chi2.sf(4 * n * np.square(means - 0.5).sum(), n_bits)),
        "correlation": float(pairs.mean()),
        # |r| of n pairs of tosses is about half-normal with deviation 1 / sqrt(n); the pairs hardly depend on another.
        "correlation_by_chance": (
            math.sqrt(2 / math.pi) + float(norm.ppf(0.95)) * math.sqrt((1 - 2 / math.pi) / len(pairs))
        )
        / math.sqrt(n - 1),
    }


def bias_by_chance(n: int, n_bits: int) -> float:
    """The largest |mean - 0.5| of n_bits bits, over n tosses, that fair coins exceed with a probability of 5 %."""
    # Two-sided at 5 %, shared by the n_bits bits (Bonferroni); a mean of fair bits has deviation 1 / (2 sqrt(n)).
    return float(norm.ppf(1 - 0.025 / n_bits)) / (2 * math.sqrt(n))
