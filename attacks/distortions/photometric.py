"""Distortions of colour and tone, pixel by pixel but for sharpness.

Factors have the meaning of Pillow's ImageEnhance: 1 changes nothing. WAVES (arXiv 2401.08573) sweeps brightness
and contrast over 1..2; the others follow it.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from privgen.attacks.base import Attack
from privgen.attacks.draws import Draws
from privgen.attacks.registry import register
from privgen.io.pixels import LUMA, luma


GAMMA_FLOOR = 1e-6
"""Values below this count as this: at 0, a power below 1 has no finite gradient."""


def blend(base: Tensor, images: Tensor, factor: float) -> Tensor:
    """`base` at factor 0, `images` at factor 1, and on the same line beyond."""
    return base + factor * (images - base)


class _Factor(Attack):
    """What the attacks by a factor share; a factor of 1 changes nothing."""

    kind = "D"
    unit = "factor"
    sweep = (1.1, 1.25, 1.5, 1.75, 2)
    identity = 1
    bounds: ClassVar[tuple[float, float]] = (0, 10)


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class Brightness(_Factor):
    """All values multiplied by the factor; below 1 it darkens."""

    name = "brightness"

    strength: float = 1.5

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        return images * self.strength


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class Contrast(_Factor):
    """The distance of every value from the image's mean grey multiplied by the factor."""

    name = "contrast"

    strength: float = 1.5

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        return blend(luma(images).mean(dim=(2, 3), keepdim=True), images, self.strength)


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class Saturation(_Factor):
    """The distance of every pixel from its own grey multiplied by the factor; 0 leaves a grey image."""

    name = "saturation"

    strength: float = 1.5

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        return images if self.is_identity else blend(luma(images), images, self.strength)


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class Gamma(_Factor):
    """Every value raised to the power of the factor: above 1 darkens the middle tones, below 1 lightens them.

    Below 1, values under 1e-6 count as 1e-6.
    """

    name = "gamma"
    bounds = (0.1, 10)

    strength: float = 1.5

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        return images.clamp_min(GAMMA_FLOOR if self.strength < 1 else 0) ** self.strength


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class Sharpness(_Factor):
    """The distance of every value from a 3 x 3 smoothing multiplied by the factor; 0 smooths.

    The smoothing is Pillow's (weights 1 around 5, over 13), and as there the outermost pixels stay as they are.
    """

    name = "sharpness"

    strength: float = 1.5

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity or min(images.shape[-2:]) < 3:
            return images
        neighbours = 9 * F.avg_pool2d(images, 3, stride=1)
        inner = images[..., 1:-1, 1:-1]
        sharp = blend((neighbours + 4 * inner) / 13, inner, self.strength)
        out = images.clone()
        out[..., 1:-1, 1:-1] = sharp
        return out


def hue_matrix(degrees: float) -> Tensor:
    """The 3 x 3 matrix, float64, that turns RGB colours about the grey axis and keeps their luma.

    A rotation about (1, 1, 1) (Rodrigues' formula), then the step along that axis that restores the luma.
    """
    angle = math.radians(degrees)
    one = torch.ones(3, 3, dtype=torch.float64) / 3
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)
    turn = math.cos(angle) * (torch.eye(3, dtype=torch.float64) - one) + math.sin(angle) * cross + one
    weights = torch.tensor(LUMA, dtype=torch.float64)
    return turn + (weights - weights @ turn)


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class Hue(Attack):
    """Colours turned about the grey axis, red towards green, with the luma kept; colours out of range are clipped.

    Args:
        strength: angle in degrees.
    """

    name = "hue"
    kind = "D"
    unit = "degrees"
    sweep = (10, 20, 45, 60, 90)
    identity = 0
    bounds = (-180, 180)

    strength: float = 45

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        return torch.einsum("ij,bjhw->bihw", hue_matrix(self.strength).to(images), images)
