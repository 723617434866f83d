"""Randomness of attacks: one generator for each image, so that a batch equals its images one by one."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor


Generator: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""One generator for all images, a list with one for each image, or None for PyTorch's global generator."""

Draws: TypeAlias = Sequence[torch.Generator | None]
"""One generator for each image; the same one may be there several times."""


def one_per_image(generator: Generator, count: int) -> Draws:
    """Return a generator for each image.

    Args:
        generator: as the caller gave it.
        count: number of images.

    Raises:
        ValueError: a list of another length.
    """
    if generator is None or isinstance(generator, torch.Generator):
        return [generator] * count
    if len(generator) != count:
        raise ValueError(f"expected one generator or one for each of {count} images, got {len(generator)}")
    return list(generator)


def draw_uniform(images: Tensor, count: int, generators: Draws) -> Tensor:
    """Draw uniform numbers in [0, 1) for each image.

    Args:
        images: (B, ...).
        count: numbers for each image.
        generators: one for each image.

    Returns:
        (B, count), with the dtype and device of `images`.
    """
    rows = [torch.rand(count, generator=source, device=_device(source)) for source in generators]
    return torch.stack([row.to(images.device) for row in rows]).to(images.dtype)


def draw_normal(images: Tensor, generators: Draws) -> Tensor:
    """Draw standard normal numbers in the shape of `images`, with its dtype and device."""
    shape = images.shape[1:]
    rows = [torch.randn(shape, generator=source, device=_device(source)) for source in generators]
    return torch.stack([row.to(images.device) for row in rows]).to(images.dtype)


def spawn(generators: Draws) -> list[torch.Generator]:
    """Make a new CPU generator from each given one, seeded by one draw from it."""
    seeds = [torch.randint(2**63 - 1, (1,), generator=source, device=_device(source)) for source in generators]
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def _device(generator: torch.Generator | None) -> torch.device:
    return generator.device if generator is not None else torch.device("cpu")
