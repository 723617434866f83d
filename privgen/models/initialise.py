"""Random initial weights that depend on a seed and on nothing else."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Draw the initial weights of all modules that the block makes from one seed.

    PyTorch initialises layers from its global generator only; this seeds it on the CPU, and puts it back as it was.
    Make modules on the CPU, so that their weights are the same whatever device they move to.

    Args:
        seed: of the weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251
        yield
