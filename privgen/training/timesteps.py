"""Times of diffusion for a batch of training."""

import torch
from torch import Tensor


def even_times(size: int, generator: torch.Generator) -> Tensor:
    """Times that cover [0, 1) evenly, with one random shift, so that the loss varies less from batch to batch.

    It is the low-discrepancy sampler of Variational Diffusion Models (arXiv 2107.00630, appendix I.1).

    Args:
        size: of the batch.
        generator: of the shift.

    Returns:
        (size,), rising.
    """
    times = (torch.arange(size) + torch.rand(1, generator=generator)) / size
    return times.clamp(max=1 - 1e-6)
