"""Averaging, or collusion: marked images of one key tell what they have in common, which is the mark."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from privgen.attacks.adaptive.examples import Examples, ExamplesLike, as_examples, needed
from privgen.attacks.base import Attack
from privgen.attacks.distortions.degradation import Blur
from privgen.attacks.draws import Draws
from privgen.attacks.registry import register


RADIUS = 2.0
"""Of the Gaussian blur that stands for the unmarked images where there are none, in pixels of the canvas."""


def mean_residual(marked: Tensor, unmarked: Tensor | None = None, *, radius: float = RADIUS) -> Tensor:
    """What marked images have in common and others have not.

    Whatever the images show averages out: with N images of each kind about 1 / sqrt(N) of it remains.

    Args:
        marked: (N, 3, S, S) in [0, 1], with the same mark.
        unmarked: (M, 3, S, S) in [0, 1], other images. None takes the marked ones after a Gaussian blur instead,
            which loses what of the mark is coarser than the blur.
        radius: of that blur, in pixels.

    Returns:
        (3, S, S), mean(marked) - mean(unmarked).

    Raises:
        ValueError: other shapes.
    """
    if unmarked is None:
        unmarked = Blur(strength=radius, reference=None)(marked)
    if marked.shape[1:] != unmarked.shape[1:]:
        raise ValueError(
            f"expected unmarked images of shape {tuple(marked.shape[1:])}, got {tuple(unmarked.shape[1:])}"
        )
    return marked.mean(dim=0) - unmarked.mean(dim=0)


@dataclass(frozen=True, kw_only=True, repr=False)
class _Averaging(Attack):
    """What removal and forgery by averaging share.

    Args:
        strength: what the mean residual is multiplied by.
        marked: images with one key's mark: a folder or a batch.
        unmarked: images without it, others or the same; without them, residuals of a blur are averaged.
        count: how many of the marked images to take, the first ones; None takes all.
        radius: of that blur, in pixels of a canvas of 128.

    Raises:
        ValueError: a count that is below 1 or more than there are, or a radius that is not positive.
        PrivgenError: images cannot be read.
    """

    kind = "A"
    unit = "of the mean residual"
    sweep = (0.5, 1, 2)
    identity = 0
    bounds = (0, 10)
    sign: ClassVar[int]

    strength: float = 1
    marked: ExamplesLike | None = None
    unmarked: ExamplesLike | None = None
    count: int | None = None
    radius: float = RADIUS

    def __post_init__(self) -> None:
        super().__post_init__()
        for which in ("marked", "unmarked"):
            object.__setattr__(self, which, as_examples(getattr(self, which)))
        there = "as many as there are" if self.marked is None else str(len(self._marked()))
        if self.count is not None and not (
            self.count >= 1 and (self.marked is None or self.count <= len(self._marked()))
        ):
            raise ValueError(f"{self.name}: expected a count of 1 to {there} marked images, got {self.count}")
        if not self.radius > 0:
            raise ValueError(f"{self.name}: expected a radius above 0, got {self.radius:g}")

    def prepare(self) -> None:
        self._marked()

    def residual(self) -> Tensor:
        """The mean residual, (3, S, S).

        Raises:
            PrivgenError: there are no marked images.
        """
        unmarked = as_examples(self.unmarked)
        return mean_residual(
            self._marked().images[: self.count], None if unmarked is None else unmarked.images, radius=self.radius
        )

    def _marked(self) -> Examples:
        return needed(as_examples(self.marked), self.name, "marked")

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        residual = self.residual()[None].to(images)
        size = (images.shape[-2], images.shape[-1])
        if residual.shape[-2:] != size:
            residual = interpolate(residual, size, mode="bicubic", antialias=True)
        return torch.add(images, residual, alpha=self.sign * self.strength)


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class AveragingRemoval(_Averaging):
    """Subtract the mean residual of marked images from an image with the same mark.

    Args:
        strength: what the residual is multiplied by.
        marked: images with that mark: a folder or a batch.
        unmarked: see `mean_residual`.
        count: marked images to take; None takes all.
        radius: see `mean_residual`.
    """

    name = "averaging_removal"
    sign = -1


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class AveragingForgery(_Averaging):
    """Add the mean residual of marked images to an image without a mark; of one marked image it is a copy attack.

    Args:
        strength: see `AveragingRemoval`, as the others.
    """

    name = "averaging_forgery"
    sign = 1
