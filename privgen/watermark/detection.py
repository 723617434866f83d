"""Whose mark an image carries, and how sure that is.

The statistic is the number of bits in which the signs of the extractor's logits agree with a key's message. Without
that key's mark each bit agrees with probability 1/2, independently (the extractor is whitened for this), so that the
number of matches of n bits follows Binomial(n, 1/2), and p = P(K >= matches).

An image that is compared with many candidates matches one of them by chance more easily: candidates are all keys
times all places (windows, scales, flips) that one image was searched with. `p_adjusted` accounts for them, and an
image is called marked when p_adjusted <= fpr: the probability that an unmarked image is called marked, with whichever
key, is then at most `fpr`. Decisions on several images are not corrected for each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import comb
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray


Correction = Literal["bonferroni", "holm", "none"]


@dataclass(frozen=True)
class Detection:
    """What one image says about one key.

    Attributes:
        bits: what the extractor read, one for each logit.
        matches: how many of them agree with the key.
        n_bits: how many there are.
        p_value: probability of as many matches or more without a mark.
        p_adjusted: the same, corrected for `candidates`.
        candidates: keys times places that the image was searched with.
        fpr: probability that an unmarked image is called marked, at most.
        threshold: matches that suffice whatever the other candidates show; n_bits + 1 if not even all would. (With the
            correction of Holm fewer can suffice once another key has been found.)
        detected: whether p_adjusted <= fpr.
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


def detect(
    logits: ArrayLike | torch.Tensor,
    keys_bits: ArrayLike | torch.Tensor,
    *,
    fpr: float = 1e-6,
    candidates: int | None = None,
    correction: Correction = "bonferroni",
) -> list[list[Detection]]:
    """Compare many images with many keys.

    Args:
        logits: (images, n_bits), one image's extractor output a row; (n_bits,) is one image.
        keys_bits: (keys, n_bits) of 0 and 1, such as `[key.bits() for key in keys]`; (n_bits,) is one key.
        fpr: probability that an unmarked image may be called marked, in (0, 1).
        candidates: keys times places that each image is searched with, at least the number of keys, which it is by
            default. Give it when `logits` holds the windows of one image as rows, or one chosen among them.
        correction: for the number of candidates: "bonferroni", "holm" (never less powerful), or "none".

    Returns:
        For each image a list with one detection for each key, in the order given.

    Raises:
        ValueError: shapes that do not fit, logits that are not finite, bits other than 0 and 1, or an argument out of
            its range.
    """
    bits, messages = read_bits(logits), _messages(keys_bits)
    matches = count_matches(bits, messages)
    n_bits, family = messages.shape[1], len(messages) if candidates is None else candidates
    p_values = p_value(matches, n_bits)
    adjusted = adjust(p_values, correction, candidates=family)
    threshold = threshold_matches(n_bits, fpr if correction == "none" else fpr / family)
    found = []
    for image, row in enumerate(bits.tolist()):
        read = tuple(row)
        results = zip(matches[image].tolist(), p_values[image].tolist(), adjusted[image].tolist(), strict=True)
        found.append([Detection(read, k, n_bits, p, q, family, fpr, threshold, q <= fpr) for k, p, q in results])
    return found


def read_bits(logits: ArrayLike | torch.Tensor) -> NDArray[np.int64]:
    """Turn logits into bits: 1 where the logit is above 0.

    A logit of exactly 0 says nothing and reads as 0, whatever the key; keys' bits being random, it matches half of
    them.

    Args:
        logits: (images, n_bits) or (n_bits,), finite.

    Returns:
        (images, n_bits) of 0 and 1.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    values = _matrix(logits, "logits")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise ValueError(f"expected finite logits, got NaN or infinity for image {row}")
    return (values > 0).astype(np.int64)


def count_matches(bits: ArrayLike | torch.Tensor, keys_bits: ArrayLike | torch.Tensor) -> NDArray[np.int64]:
    """Count the bits in which images and keys agree.

    Args:
        bits: (images, n_bits) of 0 and 1.
        keys_bits: (keys, n_bits) of 0 and 1.

    Returns:
        (images, keys), 0..n_bits.

    Raises:
        ValueError: shapes that do not fit, or bits other than 0 and 1.
    """
    read, messages = _matrix(bits, "bits"), _messages(keys_bits)
    if read.shape[1] != messages.shape[1]:
        raise ValueError(f"expected as many bits of images as of keys, got {read.shape[1]} and {messages.shape[1]}")
    agreement = (2 * read - 1) @ (2 * messages - 1).T  # matches minus mismatches
    return np.rint((agreement + messages.shape[1]) / 2).astype(np.int64)


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


def _messages(keys_bits: ArrayLike | torch.Tensor | Sequence[Sequence[int]]) -> NDArray[np.float64]:
    messages = _matrix(keys_bits, "keys_bits")
    if len(messages) == 0:
        raise ValueError("expected at least one key, got none")
    if not np.isin(messages, (0, 1)).all():
        raise ValueError("expected the bits of keys to be 0 or 1")
    return messages


def _matrix(values: ArrayLike | torch.Tensor, name: str) -> NDArray[np.float64]:
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    try:
        matrix = np.atleast_2d(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected {name} to be a matrix of numbers ({error})") from error
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"expected {name} of shape (rows, n_bits), got {matrix.shape}")
    return matrix
