"""Whose mark an image carries, and how sure that is.

There are two tests. Both compare the bits that an extractor reads, the signs of its logits, with a key's message.

- "weighted" goes by the weight of the bits in which they disagree; a bit weighs what its logit measures, because bits
  of one image differ: of a cut-out half of them may be gone, and noise drowns the weak ones first. A message is drawn
  at random, whatever an image looks like, so p is the share of all 2^n messages whose disagreement weighs as little or
  less: a randomisation test (Fisher, "The Design of Experiments", 1935), exact whatever was read.
- "binomial" counts the bits that agree, and is what the other becomes where all weigh the same. Without the key's mark
  each bit agrees with probability 1/2, independently, so that the matches of n bits follow Binomial(n, 1/2), and
  p = P(K >= matches).

Both hold for a key drawn without regard to the image. For one key over many images they hold as far as the bits of
unmarked images are unbiased and uncorrelated, for which the extractor is whitened.

An image that is compared with many candidates matches one of them by chance more easily: candidates are all keys
times all places (windows, scales, flips) that one image was searched with. `p_adjusted` accounts for them, and an
image is called marked when p_adjusted <= fpr: the probability that an unmarked image is called marked, with whichever
key, is then at most `fpr`. Decisions on several images are not corrected for each other.
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
    """What one image says about one key.

    Attributes:
        bits: what the extractor read, one for each logit.
        matches: how many of them agree with the key.
        n_bits: how many there are.
        p_value: probability, without a mark, of agreement as good or better in the terms of `test`.
        p_adjusted: the same, corrected for `candidates`.
        candidates: keys times places that the image was searched with.
        fpr: probability that an unmarked image is called marked, at most.
        threshold: matches that suffice if all bits are read equally clearly, whatever the other candidates show;
            n_bits + 1 if not even all would. (With the correction of Holm fewer can suffice once another key has been
            found.)
        detected: whether p_adjusted <= fpr.
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
    """Compare many images with many keys.

    Args:
        logits: (images, n_bits), one image's extractor output a row; (n_bits,) is one image.
        keys_bits: (keys, n_bits) of 0 and 1, such as `[key.bits() for key in keys]`; (n_bits,) is one key.
        fpr: probability that an unmarked image may be called marked, in (0, 1).
        candidates: keys times places that each image is searched with, at least the number of keys, which it is by
            default. Give it when `logits` holds the windows of one image as rows, or one chosen among them.
        correction: for the number of candidates: "bonferroni", "holm" (never less powerful), or "none".
        test: "weighted" or "binomial"; see the module.

    Returns:
        For each image a list with one detection for each key, in the order given.

    Raises:
        ValueError: shapes that do not fit, logits that are not finite, bits other than 0 and 1, or an argument out of
            its range.
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
    """How likely bits agree so well with those of keys by chance.

    Args:
        weighed: (images, n_bits), as `weigh_bits` returns them.
        keys_bits: (keys, n_bits) of 0 and 1.
        test: "weighted" or "binomial"; see the module.

    Returns:
        (images, keys), in [2^-n_bits, 1].

    Raises:
        ValueError: shapes that do not fit, weights that are not whole numbers from 1, bits other than 0 and 1, or an
            unknown test.
    """
    if test not in TESTS:
        raise ValueError(f"expected the test {' or '.join(TESTS)}, got {test!r}")
    rows, messages = as_matrix(weighed, "weighed bits"), as_messages(keys_bits)
    if (rows % 1 != 0).any() or (rows == 0).any():
        raise ValueError("expected whole numbers other than 0 as weighed bits; weigh_bits makes them of logits")
    matches = count_matches(rows > 0, messages)
    if test == "binomial":
        return p_value(matches, messages.shape[1])
    weights = np.abs(rows).astype(np.int64)
    against = np.rint((weights.sum(axis=1, keepdims=True) - rows @ (2 * messages - 1).T) / 2).astype(np.int64)
    found = np.empty(against.shape)
    for image, row in enumerate(weights):
        found[image] = _lighter(row)[against[image]]
    return found


def p_value(matches: ArrayLike, n_bits: int) -> NDArray[np.float64]:
    """P(K >= matches) for K ~ Binomial(n_bits, 1/2).

    Args:
        matches: any shape, integers 0..n_bits.
        n_bits: number of bits.

    Returns:
        The shape of `matches`, in (0, 1].

    Raises:
        ValueError: matches that are not integers in 0..n_bits.
    """
    counts = np.asarray(matches)
    if n_bits < 1:
        raise ValueError(f"expected at least one bit, got {n_bits}")
    if counts.size and (counts.min() < 0 or counts.max() > n_bits or (counts % 1 != 0).any()):
        raise ValueError(f"expected matches to be integers in 0..{n_bits}, got {counts.min()}..{counts.max()}")
    return np.asarray(_tail(n_bits)[counts.astype(np.int64)])


def threshold_matches(n_bits: int, fpr: float) -> int:
    """The fewest matches k with P(K >= k) <= fpr for K ~ Binomial(n_bits, 1/2).

    Args:
        n_bits: number of bits.
        fpr: false-positive rate in (0, 1).

    Returns:
        1..n_bits + 1; n_bits + 1 means that so few bits can never show it.

    Raises:
        ValueError: an argument out of its range.
    """
    if n_bits < 1 or not 0 < fpr < 1:
        raise ValueError(f"expected at least one bit and a rate in (0, 1), got {n_bits} and {fpr}")
    return int((_tail(n_bits) > fpr).sum())


def adjust(p_values: ArrayLike, correction: Correction, *, candidates: int | None = None) -> NDArray[np.float64]:
    """Correct p-values for the number of candidates they were chosen from.

    Bonferroni multiplies each by the number of candidates; Holm (1979) the smallest by it, the next by one less, and
    so on, never letting one fall below its predecessor. Both bound the probability of any false detection. When there
    are more candidates than p-values given, Holm counts the missing ones as the largest, which only makes it stricter
    than with all of them.

    Args:
        p_values: (..., keys); the last dimension is one family.
        correction: "bonferroni", "holm" or "none".
        candidates: size of a family, at least the number of keys, which it is by default.

    Returns:
        The shape of `p_values`, in [0, 1].

    Raises:
        ValueError: fewer candidates than p-values, or an unknown correction.
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
    """P(K >= k) for k = 0..n_bits, each exact to the last digit: sums of integers, divided once."""
    sums = np.cumsum([comb(n_bits, k) for k in range(n_bits, -1, -1)], dtype=object)[::-1]
    tail = np.array([int(count) / 2**n_bits for count in sums])
    tail.setflags(write=False)
    return tail


def _lighter(weights: NDArray[np.int64]) -> NDArray[np.float64]:
    """The share of all sets of bits that weigh m or less together, for m = 0..the weight of all."""
    counts = np.zeros(int(weights.sum()) + 1)
    counts[0] = 1
    for weight in weights:
        counts[weight:] = counts[weight:] + counts[:-weight]
    # Halving is exact, and so are counts up to 2^53.
    return np.cumsum(counts) * 0.5 ** len(weights)
