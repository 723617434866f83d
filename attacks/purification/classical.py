"""Purification without a model: median, total variation, non-local means.

They follow their papers, in plain tensor operations that let gradients through.
"""

from collections.abc import Iterator
from dataclasses import KW_ONLY, dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from privgen.attacks.base import Attack
from privgen.attacks.draws import Draws
from privgen.attacks.registry import register


CHUNK = 2**24
"""How many numbers `median_filter` may hold at once; it works on strips of rows that are small enough."""


def pad_edges(images: Tensor, reach: int) -> Tensor:
    """Repeat the outermost pixels of images `reach` times on each side."""
    return F.pad(images, (reach, reach, reach, reach), mode="replicate")


def box_mean(images: Tensor, reach: int) -> Tensor:
    """Return the mean over the square of side 2 * reach + 1 about each pixel, cut at the edges."""
    size = 2 * reach + 1
    rows = F.avg_pool2d(images, (size, 1), 1, (reach, 0), count_include_pad=False)
    return F.avg_pool2d(rows, (1, size), 1, (0, reach), count_include_pad=False)


def shifted(images: Tensor, reach: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (down, right, the shifted images) for every shift by up to `reach` pixels; edges repeat."""
    height, width = images.shape[-2:]
    padded = pad_edges(images, reach)
    for down in range(-reach, reach + 1):
        for right in range(-reach, reach + 1):
            yield (
                down,
                right,
                padded[..., reach + down : reach + down + height, reach + right : reach + right + width],
            )


def median_filter(images: Tensor, reach: int) -> Tensor:
    """Return the median of each colour over the square of side 2 * reach + 1 about each pixel; edges repeat."""
    size = 2 * reach + 1
    padded = pad_edges(images, reach)
    rows = max(1, CHUNK // (images[..., :1, :].numel() * size**2))
    strips = []
    for top in range(0, images.shape[-2], rows):
        strip = padded[..., top : top + rows + 2 * reach, :]
        strips.append(strip.unfold(2, size, 1).unfold(3, size, 1).flatten(-2).median(dim=-1).values)
    return torch.cat(strips, dim=-2)


@register
@dataclass(frozen=True, repr=False)
class Median(Attack):
    """Replaces each pixel by the median of a square window, each colour by itself.

    Args:
        strength: reach of the window, 0 to 50 pixels on each side of its centre.
    """

    name = "median"
    kind = "P"
    unit = "px"
    sweep = (1, 2, 3)
    identity = 0
    bounds = (0, 50)
    whole = True

    strength: float = 2

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        return images if self.is_identity else median_filter(images, int(self.strength))


def total_variation(images: Tensor, weight: float, *, steps: int = 100) -> Tensor:
    """Return argmin_u ||u - images||^2 / 2 + weight * TV(u), with the isotropic total variation of coupled colours.

    It is solved in the dual by projected gradient with Nesterov's momentum: Chambolle, "An algorithm for total
    variation minimization and applications" (2004); Beck and Teboulle, "Fast gradient-based algorithms for constrained
    total variation" (2009).

    Args:
        images: (B, 3, H, W).
        weight: above 0.
        steps: number of iterations.
    """
    dual = momentum = images.new_zeros(2, *images.shape)  # forces down and right between neighbours
    pace = 1.0
    for _ in range(steps):
        slope = _gradient(images + weight * _divergence(momentum))
        # 1/8 bounds the squared norm of the discrete gradient from above.
        moved = momentum + slope / (8 * weight)
        # The norm over directions and colours; inside the unit ball nothing is scaled.
        previous, dual = dual, moved / moved.square().sum(dim=(0, 2), keepdim=True).clamp_min(1).sqrt()
        faster = (1 + (1 + 4 * pace**2) ** 0.5) / 2
        momentum = dual + (pace - 1) / faster * (dual - previous)
        pace = faster
    return images + weight * _divergence(dual)


def _gradient(images: Tensor) -> Tensor:
    """Return forward differences down and right, (2, B, 3, H, W); they are 0 at the last row and column."""
    down = F.pad(images.diff(dim=-2), (0, 0, 0, 1))
    right = F.pad(images.diff(dim=-1), (0, 1))
    return torch.stack([down, right])


def _divergence(forces: Tensor) -> Tensor:
    """Return the negative adjoint of `_gradient`, for forces that are 0 at the last row and column."""
    down, right = forces
    return F.pad(down, (0, 0, 1, 0)).diff(dim=-2) + F.pad(right, (1, 0)).diff(dim=-1)


@register
@dataclass(frozen=True, repr=False)
class TotalVariation(Attack):
    """Smooths the image but keeps its edges, by total-variation denoising (Rudin, Osher and Fatemi 1992).

    Args:
        strength: weight, 0 to 10, of the total variation against half the squared distance to the image, for pixel
            values in [0, 1].
        steps: iterations of the solver, at least 1.
    """

    name = "total_variation"
    kind = "P"
    unit = "weight"
    sweep = (0.02, 0.05, 0.1, 0.15, 0.2)
    identity = 0
    bounds = (0, 10)

    strength: float = 0.1
    _: KW_ONLY
    steps: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.steps < 1:
            raise ValueError(f"total_variation: expected steps >= 1, got {self.steps}")

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        return images if self.is_identity else total_variation(images, self.strength, steps=self.steps)


def non_local_means(images: Tensor, decay: float, *, patch: int = 2, search: int = 7) -> Tensor:
    """Return a mean of the pixels around each pixel, weighted by how much their surroundings look like its own.

    The weights are exp(-d^2 / decay^2), where d^2 is the mean squared difference of two patches over pixels and
    colours: Buades, Coll and Morel, "A non-local algorithm for image denoising" (2005).

    Args:
        images: (B, 3, H, W).
        decay: root mean squared difference of patches at which the weight has fallen to 1/e, above 0.
        patch: half the side of the patches.
        search: half the side of the square that is searched.
    """
    total, weights = torch.zeros_like(images), torch.zeros_like(images[:, :1])
    for _, _, neighbour in shifted(images, search):
        distance = box_mean((neighbour - images).square().mean(dim=1, keepdim=True), patch)
        weight = torch.exp(-distance / decay**2)
        total = total + weight * neighbour
        weights = weights + weight
    return total / weights


@register
@dataclass(frozen=True, repr=False)
class NonLocalMeans(Attack):
    """Averages each pixel with those around it whose surroundings look alike (non-local means).

    Args:
        strength: decay, 0 to 10: root mean squared difference of two patches, for pixel values in [0, 1], at which a
            pixel's weight has fallen to 1/e.
        patch: half the side of the patches in pixels, at least 0.
        search: half the side in pixels of the square that is searched, at least 1.
    """

    name = "non_local_means"
    kind = "P"
    unit = "decay"
    sweep = (0.02, 0.05, 0.1, 0.15, 0.2)
    identity = 0
    bounds = (0, 10)

    strength: float = 0.1
    _: KW_ONLY
    patch: int = 2
    search: int = 7

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.patch < 0 or self.search < 1:
            raise ValueError(
                f"non_local_means: expected patch >= 0 and search >= 1, got {self.patch} and {self.search}"
            )

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        return non_local_means(images, self.strength, patch=self.patch, search=self.search)
