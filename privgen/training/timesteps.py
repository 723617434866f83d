"""Diffusion times for the samples of a training step."""

from collections.abc import Sequence

import torch
from torch import Tensor


_GOLDEN_RATIO = (5**0.5 - 1) / 2


def even_times(size: int, generator: torch.Generator) -> Tensor:
    """Draw times that cover [0, 1) evenly, so that the loss varies less from batch to batch.

    All times of a batch are shifted by one random number. This is the low-discrepancy sampler of Variational Diffusion
    Models (arXiv 2107.00630, appendix I.1).

    Args:
        size: of the batch.
        generator: draws the shift.

    Returns:
        (size,), rising.
    """
    times = (torch.arange(size) + torch.rand(1, generator=generator)) / size
    return times.clamp(max=1 - 1e-6)


def golden_times(indices: Sequence[int], seed: int) -> Tensor:
    """Times in [0, 1) that depend on the number of a sample alone. Successive samples cover [0, 1) evenly.

    They are the multiples of the golden ratio, without their whole part.

    Args:
        indices: numbers of the samples.
        seed: of the run; it shifts all times.

    Returns:
        (len(indices),) float64.
    """
    return (torch.tensor(indices, dtype=torch.float64) * _GOLDEN_RATIO + seed * 0.1) % 1
