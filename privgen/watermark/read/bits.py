"""Turn logits into bits with weights, and count the bits that agree with the messages of keys."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray


LEVELS = 100
"""The largest weight of a bit. Weights are whole numbers, so that the test is exact and can be repeated from a log."""
_CLEAREST = 3.0  # a logit this many times the RMS of its image's logits has the largest weight, and larger ones too


def weigh_bits(logits: ArrayLike | torch.Tensor) -> NDArray[np.int8]:
    """Return the bits of logits, each with a weight that says how clearly it was read.

    Args:
        logits: (images, n_bits) or (n_bits,), finite. Their scale makes no difference.

    Returns:
        (images, n_bits), positive for a bit of 1 and negative for a bit of 0. Magnitudes go from 1 to `LEVELS` and are
        proportional to those of the logits. A logit of exactly 0 reads as a bit of 0.

    Raises:
        ValueError: the shape is wrong, or a value is not finite.
    """
    values = _finite_logits(logits)
    size = np.abs(values)
    rms = np.sqrt(np.square(size).mean(axis=1, keepdims=True))
    fraction = np.divide(size, _CLEAREST * rms, out=np.ones_like(size), where=rms > 0)
    weights = np.clip(np.rint(LEVELS * fraction), 1, LEVELS)
    return np.where(values > 0, weights, -weights).astype(np.int8)


def count_matches(bits: ArrayLike | torch.Tensor, keys_bits: ArrayLike | torch.Tensor) -> NDArray[np.int64]:
    """Return how many bits of each image agree with each key.

    Args:
        bits: (images, n_bits) of 0 and 1.
        keys_bits: (keys, n_bits) of 0 and 1.

    Returns:
        (images, keys), 0..n_bits.

    Raises:
        ValueError: the shapes do not fit, or a bit is neither 0 nor 1.
    """
    read, messages = as_matrix(bits, "bits"), as_messages(keys_bits)
    if read.shape[1] != messages.shape[1]:
        raise ValueError(f"expected as many bits of images as of keys, got {read.shape[1]} and {messages.shape[1]}")
    agreement = (2 * read - 1) @ (2 * messages - 1).T  # matches minus mismatches
    return np.rint((agreement + messages.shape[1]) / 2).astype(np.int64)


def as_messages(keys_bits: ArrayLike | torch.Tensor | Sequence[Sequence[int]]) -> NDArray[np.float64]:
    """Check the bits of keys, and return them as a matrix (keys, n_bits)."""
    messages = as_matrix(keys_bits, "keys_bits")
    if len(messages) == 0:
        raise ValueError("expected at least one key, got none")
    if not ((messages == 0) | (messages == 1)).all():
        raise ValueError("expected the bits of keys to be 0 or 1")
    return messages


def as_matrix(values: ArrayLike | torch.Tensor, name: str) -> NDArray[np.float64]:
    """Check numbers, and return them as a float64 matrix. A vector becomes one row. Errors call the numbers `name`."""
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
