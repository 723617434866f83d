"""Whether unmarked images read like fair coins, as every p-value assumes."""

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from privgen.evaluation.calibration.rates import bias_by_chance
from privgen.evaluation.intervals import ci95, fraction, values
from privgen.evaluation.watermark.readings import RATES, Bits, Weighed
from privgen.watermark.read.bits import count_matches
from privgen.watermark.read.p_values import p_value, p_values_of


def tails(matches: ArrayLike, n_bits: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How often unmarked images agree with a key in at least k bits, and how often fair coins do.

    The two agree when the extractor's bits are independent and unbiased.

    Args:
        matches: bits of pairs of an unmarked image and a key that agree, 0..n_bits; any shape.
        n_bits: number of bits.

    Returns:
        The fraction of `matches` >= k, and P(K >= k) for K ~ Binomial(n_bits, 1/2), for k = 0..n_bits.
    """
    counts = np.bincount(np.ravel(matches), minlength=n_bits + 1)
    measured = np.cumsum(counts[::-1])[::-1] / counts.sum()
    return measured, p_value(np.arange(n_bits + 1), n_bits)


def calibrate(read: Weighed, messages: Bits) -> dict[str, Any]:
    """How far readings of unmarked images are from fair coins.

    Args:
        read: (images, n_bits), what was read.
        messages: (keys, n_bits), the bits of the keys that every image is compared with.

    Returns:
        Counts; false-positive rates with intervals; mean and standard deviation of the matches beside those of the
        binomial law; the largest false-positive rate of one key; and the largest |mean - 0.5| of a bit beside the one
        that fair bits exceed with a probability of 5 %.
    """
    images, n_bits = read.shape
    matches, p = count_matches(read > 0, messages), p_values_of(read, messages, "weighted")
    rates = {f"fpr_{name}": fraction((p <= fpr).ravel()) for name, fpr in RATES.items()}
    of_keys = (p <= RATES["1e-3"]).mean(axis=0)
    return {
        "images": images,
        "pairs": matches.size,
        **values(rates),
        "worst_key_fpr_1e-3": float(of_keys.max()),
        "matches_mean": float(matches.mean()),
        "matches_std": float(matches.std()),
        "matches_mean_binomial": n_bits / 2,
        "matches_std_binomial": math.sqrt(n_bits) / 2,
        "bit_bias": float(np.abs((read > 0).mean(axis=0) - 0.5).max()),
        "bit_bias_by_chance": bias_by_chance(images, n_bits),
        "ci95": ci95(rates),
    }
