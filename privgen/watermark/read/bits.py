"""Bits that an extractor read, how clearly it read each, and how they compare with the messages of keys."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray


LEVELS = 100
"""Weight of the clearest bit; weights are whole numbers, so that the test is exact and can be repeated from a log."""
_CLEAREST = 3.0  # RMS of an image's logits, beyond which a bit weighs no more


def weigh_bits(logits: ArrayLike | torch.Tensor) -> NDArray[np.int8]:
    """Bits with their weights, from logits.

    Args:
        logits: (images, n_bits) or (n_bits,), finite; their scale changes nothing.

    Returns:
        (images, n_bits): above 0 for bits of 1, below 0 for bits of 0, with sizes from 1 to `LEVELS` in proportion to
        the logits. A logit of exactly 0 reads as a bit of 0.

    Raises:
        ValueError: another shape, or values that are not finite.
    """
    values = _finite_logits(logits)
    size = np.abs(values)
    rms = np.sqrt(np.square(size).mean(axis=1, keepdims=True))
    share = np.divide(size, _CLEAREST * rms, out=np.ones_like(size), where=rms > 0)
    weights = np.clip(np.rint(LEVELS * share), 1, LEVELS)
    return np.where(values > 0, weights, -weights).astype(np.int8)


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
    read, messages = as_matrix(bits, "bits"), as_messages(keys_bits)
    if read.shape[1] != messages.shape[1]:
        raise ValueError(f"expected as many bits of images as of keys, got {read.shape[1]} and {messages.shape[1]}")
    agreement = (2 * read - 1) @ (2 * messages - 1).T  # matches minus mismatches
    return np.rint((agreement + messages.shape[1]) / 2).astype(np.int64)


def as_messages(keys_bits: ArrayLike | torch.Tensor | Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Bits of keys as a matrix, checked."""
    messages = as_matrix(keys_bits, "keys_bits")
    if len(messages) == 0:
        raise ValueError("expected at least one key, got none")
    if not np.isin(messages, (0, 1)).all():
        raise ValueError("expected the bits of keys to be 0 or 1")
    return messages


def as_matrix(values: ArrayLike | torch.Tensor, name: str) -> NDArray[np.float64]:
    """Numbers as a matrix of float64, one row for a vector, checked; `name` is for the message."""
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    try:
        matrix = np.atleast_2d(np.asarray(values, dtype=np.float64))
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected {name} to be a matrix of numbers ({error})") from error
    if matrix.ndim != 2 or matrix.shape[1] == 0:
        raise ValueError(f"expected {name} of shape (rows, n_bits), got {matrix.shape}")
    return matrix


def _finite_logits(logits: ArrayLike | torch.Tensor) -> NDArray[np.float64]:
    values = as_matrix(logits, "logits")
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).all(axis=1))[0])
        raise ValueError(f"expected finite logits, got NaN or infinity for image {row}")
    return values
