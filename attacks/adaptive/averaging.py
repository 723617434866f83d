"""Averaging, or collusion: what the marked images of one key have in common is the mark."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import Tensor

from privgen.attacks.adaptive.examples import ExamplesLike, as_examples, as_pair, needed
from privgen.attacks.base import Attack
from privgen.attacks.distortions.degradation import Blur
from privgen.attacks.draws import Draws
from privgen.attacks.registry import register
from privgen.io.pixels import resize


RADIUS = 8.0
"""Radius of the blur that stands for unmarked images, in pixels of an image whose side is 512."""


def mean_residual(marked: Tensor, unmarked: Tensor | None = None, *, radius: float = RADIUS) -> Tensor:
    """Return what marked images have in common and other images do not.

    What the images show averages out: with N images of each kind, about 1 / sqrt(N) of it remains.

    Args:
        marked: (N, 3, S, S) in [0, 1], with the same mark.
        unmarked: (M, 3, S, S) in [0, 1], other images. Without them, the marked images after a Gaussian blur take
            their place. Then the residual lacks what is coarser than the blur.
        radius: standard deviation of that blur, in pixels of an image whose side is 512.

    Returns:
        (3, S, S), mean(marked) - mean(unmarked).

    Raises:
        ValueError: images of different sizes.
    """
    if unmarked is None:
        unmarked = Blur(radius)(marked)
    if marked.shape[1:] != unmarked.shape[1:]:
        raise ValueError(
            f"expected unmarked images of shape {tuple(marked.shape[1:])}, got {tuple(unmarked.shape[1:])}"
        )
    return marked.mean(dim=0) - unmarked.mean(dim=0)


@dataclass(frozen=True, repr=False)
class _Averaging(Attack):
    """Adds a multiple of the mean residual of collected images.

    Args:
        strength: factor of the mean residual, 0 to 10.
        marked: images with the mark of one key: a folder or a batch (N, 3, H, W).
        unmarked: images without the mark; they may show something else. See `mean_residual`.
        count: number of marked images to use, from the first on; None uses all.
        radius: of the blur that stands for unmarked images, in pixels of an image whose side is 512.
        size: side in pixels of the squares that collected images are resized to; by default the shorter side of the
            first marked image, at most 256.

    Raises:
        ValueError: `count` is below 1 or above the number of marked images, or `radius` is not positive.
        PrivgenError: an image cannot be read.
    """

    kind = "A"
    unit = "of the mean residual"
    sweep = (0.5, 1, 2)
    identity = 0
    bounds = (0, 10)
    sign: ClassVar[int]

    strength: float = 1
    _: KW_ONLY
    marked: ExamplesLike | None = None
    unmarked: ExamplesLike | None = None
    count: int | None = None
    radius: float = RADIUS
    size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        marked, unmarked = as_pair(self.marked, self.unmarked, self.size)
        object.__setattr__(self, "marked", marked)
        object.__setattr__(self, "unmarked", unmarked)
        if self.count is not None and not (self.count >= 1 and (marked is None or self.count <= len(marked))):
            there = "as many as there are" if marked is None else str(len(marked))
            raise ValueError(f"{self.name}: expected a count of 1 to {there} marked images, got {self.count}")
        if not self.radius > 0:
            raise ValueError(f"{self.name}: expected a radius above 0, got {self.radius:g}")

    def prepare(self) -> None:
        needed(self.marked, self.name, "marked")

    def residual(self) -> Tensor:
        """Return the mean residual, (3, S, S).

        Raises:
            PrivgenError: there are no marked images.
        """
        marked, unmarked = needed(self.marked, self.name, "marked"), as_examples(self.unmarked)
        return mean_residual(
            marked.images[: self.count], None if unmarked is None else unmarked.images, radius=self.radius
        )

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        residual = resize(self.residual()[None].to(images), images.shape[-2:])
        return torch.add(images, residual, alpha=self.sign * self.strength)


@register
@dataclass(frozen=True, repr=False)
class AveragingRemoval(_Averaging):
    """Subtracts the mark that collected images have in common.

    Args:
        strength: factor of the mean residual, 0 to 10.
        marked: images with the mark of one key: a folder or a batch (N, 3, H, W).
        unmarked: images without the mark; they may show something else. See `mean_residual`.
        count: number of marked images to use, from the first on; None uses all.
        radius: of the blur that stands for unmarked images, in pixels of an image whose side is 512.
        size: side in pixels of the squares that collected images are resized to; by default the shorter side of the
            first marked image, at most 256.
    """

    name = "averaging_removal"
    sign = -1


@register
@dataclass(frozen=True, repr=False)
class AveragingForgery(_Averaging):
    """Adds the mark that collected images have in common; with one collected image, this is a copy attack.

    Args:
        strength: factor of the mean residual, 0 to 10.
        marked: see `AveragingRemoval`, also for the other parameters.
    """

    name = "averaging_forgery"
    sign = 1
