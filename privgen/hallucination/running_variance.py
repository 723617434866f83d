"""The variance of a model's predictions over the steps of sampling (Aithal et al., arXiv 2406.09358).

Where a model hallucinates, its predictions of x_0 change more from step to step.
"""

import functools
from collections.abc import Collection

import torch
from torch import Tensor

from privgen.errors import UsageError


WATCHED = (0.0, 400.0)
"""Lowest and highest timestep, of 1000, whose predictions count in our measurements."""


class RunningVariance:
    """Variance over a stream of predictions, by Welford's algorithm in two tensors.

    Attributes:
        count: how many predictions were added.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, prediction: Tensor) -> None:
        """Add the next prediction, (B, ...), of the same shape each time."""
        if self.count == 0:
            self._mean, self._squares = torch.zeros_like(prediction), torch.zeros_like(prediction)
        self.count += 1
        change = prediction - self._mean
        self._mean = self._mean + change / self.count
        self._squares = self._squares + change * (prediction - self._mean)

    def per_sample(self) -> Tensor:
        """The unbiased variance over the predictions, averaged over the values of each sample: (B,).

        Raises:
            UsageError: fewer than two predictions were added.
        """
        if self.count < 2:
            raise UsageError(
                f"{self.count} steps were watched, but a variance needs two; use more steps, or watch a wider window."
            )
        return (self._squares / (self.count - 1)).flatten(1).mean(1)


def variance(predictions: Collection[Tensor]) -> Tensor:
    """The unbiased variance of at least two tensors of one shape, value by value.

    It is many times faster than `torch.stack(predictions).var(0)` for a handful of tensors.
    """
    mean = functools.reduce(torch.add, predictions) / len(predictions)
    squares = ((prediction - mean).square() for prediction in predictions)
    return functools.reduce(torch.add, squares) / (len(predictions) - 1)
