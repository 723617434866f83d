"""The detector of hallucinations: how much predictions waver (Aithal et al., arXiv 2406.09358)."""

from torch import Tensor, zeros_like

from privgen.errors import UsageError


WATCHED = (0.0, 400.0)
"""Timesteps, of 1000, over which the variance of predictions is taken."""


class RunningVariance:
    """The variance of predictions over time, kept in two tensors by Welford's algorithm.

    Attributes:
        count: predictions so far.
    """

    def __init__(self) -> None:
        self.count = 0

    def add(self, prediction: Tensor) -> None:
        """Take in the next prediction, (B, ...), the same shape each time."""
        if self.count == 0:
            self._mean, self._squares = zeros_like(prediction), zeros_like(prediction)
        self.count += 1
        change = prediction - self._mean
        self._mean = self._mean + change / self.count
        self._squares = self._squares + change * (prediction - self._mean)

    def per_sample(self) -> Tensor:
        """Variance over time (n - 1 below), mean over the numbers of a sample: (B,).

        Raises:
            UsageError: fewer than two predictions.
        """
        if self.count < 2:
            raise UsageError(
                f"{self.count} steps were watched, and a variance needs two; use more steps, or watch a wider window."
            )
        return (self._squares / (self.count - 1)).flatten(1).mean(1)
