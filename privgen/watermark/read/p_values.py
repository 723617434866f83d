"""P-values: which key's mark an image carries, and how likely such a match is by chance.

Both tests compare the bits that an extractor reads (the signs of its logits) with the message of a key.

- "weighted" adds up the weights of the bits that disagree. A bit's weight is the size of its logit, because an
  extractor does not read all bits of an image equally well: a crop may lose half of them, and noise hides the weakest
  first. The message of a key is random and does not depend on the image. So p is the fraction of all 2^n messages for
  which the disagreement weighs as little or less. This is a randomisation test (Fisher, "The Design of Experiments",
  1935). It is exact for any logits.
- "binomial" counts the bits that agree. Without the key's mark, each bit agrees with probability 1/2, independently of
  the others, so the number of matches K follows Binomial(n, 1/2), and p = P(K >= matches). The weighted test gives the
  same p if all bits weigh the same.

Both tests are valid if the key was drawn without regard to the image. If you test one key on many images, they are
valid as far as the bits of unmarked images are unbiased and uncorrelated; the extractor is whitened for this reason.

The more candidates you compare an image with, the more easily one of them matches by chance. Candidates are all keys
times all places (windows, scales, flips) that were tried on one image. `p_adjusted` is corrected for their number, and
an image is detected as marked if p_adjusted <= fpr. The probability to detect any key in an unmarked image is then at
most `fpr`. Decisions on several images are not corrected for each other.
"""

from dataclasses import dataclass
from functools import cache
from math import comb
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from privgen.watermark.read.bits import as_matrix, as_messages, count_matches, weigh_bits


Correction = Literal["bonferroni", "holm", "none"]
Test = Literal["weighted", "binomial"]

TESTS: tuple[Test, ...] = get_args(Test)


@dataclass(frozen=True)
class KeyTest:
    """The result of one key's test on one image.

    Attributes:
        bits: bits that the extractor read.
        matches: number of bits that agree with the key.
        n_bits: number of bits.
        p_value: probability that an unmarked image agrees this well or better, by `test`.
        p_adjusted: `p_value`, corrected for the number of candidates.
        candidates: number of keys times number of places that were tried on the image.
        fpr: largest probability to detect a key in an unmarked image.
        threshold: number of matches that is enough for a detection if all bits weigh the same; n_bits + 1 if even
            n_bits matches are not enough. (With Holm's correction fewer can be enough once another key is detected.)
        detected: True if p_adjusted <= fpr.
        test: "weighted" or "binomial".
    """

    bits: tuple[int, ...]
    matches: int
    n_bits: int
    p_value: float
    p_adjusted: float
    candidates: int
    fpr: float
    threshold: int
    detected: bool
    test: Test


def match_keys(
    logits: ArrayLike | torch.Tensor,
    keys_bits: ArrayLike | torch.Tensor,
    *,
    fpr: float = 1e-6,
    candidates: int | None = None,
    correction: Correction = "bonferroni",
    test: Test = "weighted",
) -> list[list[KeyTest]]:
    """Test images for keys.

    Args:
        logits: (images, n_bits), the extractor's output for each image; (n_bits,) is one image.
        keys_bits: (keys, n_bits) of 0 and 1, such as `[key.bits() for key in keys]`; (n_bits,) is one key.
        fpr: largest probability to detect a key in an unmarked image, in (0, 1).
        candidates: number of keys times number of places that were tried on each image; by default the number of keys.
            Set it if the rows of `logits` are windows of one image, or if you chose a row among several windows.
        correction: for the number of candidates: "bonferroni", "holm" (at least as powerful), or "none".
        test: "weighted" or "binomial"; see the top of this module.

    Returns:
        For each image a list with one result for each key, in the order of `keys_bits`.

    Raises:
        ValueError: the shapes do not fit, a logit is not finite, a bit is neither 0 nor 1, or an argument is out of
            range.
    """
    weighed, messages = weigh_bits(logits), as_messages(keys_bits)
    matches = count_matches(weighed > 0, messages)
    n_bits, family = messages.shape[1], len(messages) if candidates is None else candidates
    p_values = p_values_of(weighed, messages, test)
    adjusted = adjust(p_values, correction, candidates=family)
    threshold = threshold_matches(n_bits, fpr if correction == "none" else fpr / family)
    found = []
    for image, row in enumerate((weighed > 0).astype(int).tolist()):
        read = tuple(row)
        results = zip(matches[image].tolist(), p_values[image].tolist(), adjusted[image].tolist(), strict=True)
        found.append([KeyTest(read, k, n_bits, p, q, family, fpr, threshold, q <= fpr, test) for k, p, q in results])
    return found


def p_values_of(weighed: ArrayLike, keys_bits: ArrayLike | torch.Tensor, test: Test) -> NDArray[np.float64]:
    """Return the probability that bits agree this well with each key by chance.

    Args:
        weighed: (images, n_bits), as `weigh_bits` returns them.
        keys_bits: (keys, n_bits) of 0 and 1.
        test: "weighted" or "binomial"; see the top of this module.

    Returns:
        (images, keys), in [2^-n_bits, 1].

    Raises:
        ValueError: the shapes do not fit, a weight is 0 or not a whole number, a bit is neither 0 nor 1, or the test
            is unknown.
    """
    if test not in TESTS:
        raise ValueError(f"expected the test {' or '.join(TESTS)}, got {test!r}")
    rows, messages = as_matrix(weighed, "weighed bits"), as_messages(keys_bits)
    if (rows % 1 != 0).any() or (rows == 0).any():
        raise ValueError("expected whole numbers other than 0 as weighed bits; weigh_bits makes them of logits")
    if rows.shape[1] != messages.shape[1]:
        raise ValueError(f"expected as many bits of images as of keys, got {rows.shape[1]} and {messages.shape[1]}")
    if test == "binomial":
        return p_value(count_matches(rows > 0, messages), messages.shape[1])
    weights = np.abs(rows).astype(np.int64)
    against = np.rint((weights.sum(axis=1, keepdims=True) - rows @ (2 * messages - 1).T) / 2).astype(np.int64)
    found = np.empty(against.shape)
    for image, row in enumerate(weights):
        found[image] = _lighter(row)[against[image]]
    return found


def p_value(matches: ArrayLike, n_bits: int) -> NDArray[np.float64]:
    """Return P(K >= matches) for K ~ Binomial(n_bits, 1/2).

    Args:
        matches: any shape, integers 0..n_bits.
        n_bits: number of bits.

    Returns:
        Same shape as `matches`, in (0, 1].

    Raises:
        ValueError: `matches` has values that are not integers in 0..n_bits.
    """
    counts = np.asarray(matches)
    if n_bits < 1:
        raise ValueError(f"expected at least one bit, got {n_bits}")
    if counts.size and (counts.min() < 0 or counts.max() > n_bits or (counts % 1 != 0).any()):
        raise ValueError(f"expected matches to be integers in 0..{n_bits}, got {counts.min()}..{counts.max()}")
    return np.asarray(_tail(n_bits)[counts.astype(np.int64)])


def threshold_matches(n_bits: int, fpr: float) -> int:
    """Return the smallest k with P(K >= k) <= fpr for K ~ Binomial(n_bits, 1/2).

    Args:
        n_bits: number of bits.
        fpr: false-positive rate in (0, 1).

    Returns:
        1..n_bits + 1; n_bits + 1 means that even n_bits matches are not enough.

    Raises:
        ValueError: an argument is out of range.
    """
    if n_bits < 1 or not 0 < fpr < 1:
        raise ValueError(f"expected at least one bit and a rate in (0, 1), got {n_bits} and {fpr}")
    return int((_tail(n_bits) > fpr).sum())


def adjust(p_values: ArrayLike, correction: Correction, *, candidates: int | None = None) -> NDArray[np.float64]:
    """Correct p-values for the number of candidates that they were chosen from.

    Bonferroni multiplies each p-value by the number of candidates. Holm (1979) multiplies the smallest by it, the next
    by one less, and so on, and keeps the results in ascending order. Both bound the probability of a false detection.
    If there are more candidates than p-values, Holm takes the missing p-values as the largest, which makes the
    correction stricter.

    Args:
        p_values: (..., keys); each row along the last dimension is corrected by itself.
        correction: "bonferroni", "holm" or "none".
        candidates: number of candidates of each row, at least the number of keys; by default the number of keys.

    Returns:
        Same shape as `p_values`, in [0, 1].

    Raises:
        ValueError: there are fewer candidates than p-values in a row, or the correction is unknown.
    """
    p = np.asarray(p_values, dtype=np.float64)
    family = p.shape[-1] if candidates is None else candidates
    if family < p.shape[-1]:
        raise ValueError(f"expected at least as many candidates as keys, got {family} and {p.shape[-1]}")
    if correction == "none":
        return p.copy()
    if correction == "bonferroni":
        return np.minimum(p * family, 1)
    if correction != "holm":
        raise ValueError(f"expected the correction bonferroni, holm or none, got {correction!r}")
    order = np.argsort(p, axis=-1, kind="stable")
    stepped = np.take_along_axis(p, order, axis=-1) * (family - np.arange(p.shape[-1]))
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, np.minimum(np.maximum.accumulate(stepped, axis=-1), 1), axis=-1)
    return adjusted


@cache
def _tail(n_bits: int) -> NDArray[np.float64]:
    """Return P(K >= k) for k = 0..n_bits. Integers are summed and divided once, so each is exact to the last digit."""
    sums = np.cumsum([comb(n_bits, k) for k in range(n_bits, -1, -1)], dtype=object)[::-1]
    tail = np.array([int(count) / 2**n_bits for count in sums])
    tail.setflags(write=False)
    return tail


def _lighter(weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the fraction of all subsets of bits whose weights add up to m or less, for m = 0..sum of weights."""
    counts = np.zeros(int(weights.sum()) + 1)
    counts[0] = 1
    for weight in weights:
        counts[weight:] = counts[weight:] + counts[:-weight]
    # Halving is exact, and so are counts up to 2^53.
    return np.cumsum(counts) * 0.5 ** len(weights)
