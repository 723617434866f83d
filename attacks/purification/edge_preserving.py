"""Purification by edge-preserving smoothing: a bilateral filter many times, then a guided filter.

The recipe is that of AdverseCleaner (2023), a tool against protective perturbations: 64 weak bilateral passes wash
small patterns out and round edges off; four guided passes bring the edges of the original back.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from privgen.attacks.base import Attack
from privgen.attacks.draws import Draws
from privgen.attacks.purification.classical import box_mean, shifted
from privgen.attacks.registry import register


BILATERAL_REACH = 2
BILATERAL_SIGMA = 8 / 255, 8.0  # of values; of distances in pixels
GUIDED_REACH = 4
GUIDED_EPSILON = (4 / 255) ** 2
GUIDED_PASSES = 4


def bilateral_filter(images: Tensor, reach: int, sigma_value: float, sigma_space: float) -> Tensor:
    """Return the mean over a disc, weighted by distance in space and in colour (Tomasi and Manduchi 1998).

    Args:
        images: (B, 3, H, W).
        reach: radius of the disc in pixels.
        sigma_value: standard deviation of the weight in the sum of the three absolute colour differences.
        sigma_space: standard deviation of the weight in pixels.
    """
    total, weights = torch.zeros_like(images), torch.zeros_like(images[:, :1])
    for down, right, neighbour in shifted(images, reach):
        if (far := down**2 + right**2) > reach**2:
            continue
        difference = (neighbour - images).abs().sum(dim=1, keepdim=True)
        closeness = math.exp(-far / (2 * sigma_space**2))
        weight = closeness * torch.exp(-difference.square() / (2 * sigma_value**2))
        total = total + weight * neighbour
        weights = weights + weight
    return total / weights


def guided_filter(images: Tensor, guide: Tensor, reach: int, epsilon: float) -> Tensor:
    """Return images as locally linear functions of a colour guide (He, Sun and Tang, "Guided image filtering", 2010).

    Args:
        images: (B, 3, H, W).
        guide: (B, 3, H, W).
        reach: half the side of the window.
        epsilon: ridge on the linear coefficients, in squared units of pixel values.
    """
    mean_guide, mean_images = box_mean(guide, reach), box_mean(images, reach)
    covariance = _moments(guide, guide, reach) - _outer(mean_guide, mean_guide)  # (B, H, W, 3, 3)
    cross = _moments(guide, images, reach) - _outer(mean_guide, mean_images)
    ridge = epsilon * torch.eye(3, device=images.device, dtype=images.dtype)
    slope = torch.linalg.solve(covariance + ridge, cross).permute(0, 3, 4, 1, 2)  # (B, guide, image, H, W)
    offset = mean_images - (slope * mean_guide[:, :, None]).sum(dim=1)
    mean_slope = box_mean(slope.flatten(1, 2), reach).unflatten(1, (3, 3))
    return (mean_slope * guide[:, :, None]).sum(dim=1) + box_mean(offset, reach)


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Return the products of all pairs of colours, (B, H, W, 3, 3)."""
    return torch.einsum("bihw,bjhw->bhwij", left, right)


def _moments(left: Tensor, right: Tensor, reach: int) -> Tensor:
    """Return local means of the products of all pairs of colours, (B, H, W, 3, 3)."""
    products = (left[:, :, None] * right[:, None]).flatten(1, 2)
    return box_mean(products, reach).unflatten(1, (3, 3)).permute(0, 3, 4, 1, 2)


@register
@dataclass(frozen=True, repr=False)
class BilateralGuided(Attack):
    """Smooths the image many times with a bilateral filter, and brings its edges back with a guided filter.

    The settings are AdverseCleaner's: a disc of 5 pixels across, standard deviations 8/255 and 8 pixels; then four
    guided passes with windows of 9 x 9 pixels and epsilon (4/255)^2, whose guide is the original.

    Args:
        strength: number of bilateral passes, 0 to 1000; AdverseCleaner's is 64. At 0 there are no guided passes
            either.
    """

    name = "bilateral_guided"
    kind = "P"
    unit = "passes"
    sweep = (16, 32, 64, 96, 128)
    identity = 0
    bounds = (0, 1000)
    whole = True

    strength: float = 64

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        smooth = images
        for _ in range(int(self.strength)):
            smooth = bilateral_filter(smooth, BILATERAL_REACH, *BILATERAL_SIGMA)
        for _ in range(GUIDED_PASSES):
            smooth = guided_filter(smooth, images, GUIDED_REACH, GUIDED_EPSILON)
        return smooth
