"""Distortions of colour and tone, each pixel by itself, but for sharpness.

Factors mean what they mean in Pillow's ImageEnhance: 1 changes nothing. WAVES (arXiv 2401.08573) sweeps brightness
and contrast over 1 to 2; the others follow it.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from privgen.attacks.base import Attack
from privgen.attacks.draws import Draws
from privgen.attacks.registry import register
from privgen.io.pixels import LUMA, luma


GAMMA_FLOOR = 1e-6
"""Smaller values count as this one: at 0, a power below 1 has no finite gradient."""


def blend(base: Tensor, images: Tensor, factor: float) -> Tensor:
    """Return `base` at factor 0, `images` at factor 1, and what lies on the same line at other factors."""
    return base + factor * (images - base)


class _Factor(Attack):
    """What the attacks by a factor share: a factor of 1 changes nothing."""

    kind = "D"
    unit = "factor"
    sweep = (1.1, 1.25, 1.5, 1.75, 2)
    identity = 1
    bounds: ClassVar[tuple[float, float]] = (0, 10)


@register
@dataclass(frozen=True, repr=False)
class Brightness(_Factor):
    """Multiplies all pixel values by a factor.

    Args:
        strength: factor, 0 to 10; below 1 the image becomes darker.
    """

    name = "brightness"

    strength: float = 1.5

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        return images * self.strength


@register
@dataclass(frozen=True, repr=False)
class Contrast(_Factor):
    """Multiplies the distance of all pixel values from the image's mean luma by a factor.

    Args:
        strength: factor, 0 to 10; 0 leaves one grey level.
    """

    name = "contrast"

    strength: float = 1.5

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        return blend(luma(images).mean(dim=(2, 3), keepdim=True), images, self.strength)


@register
@dataclass(frozen=True, repr=False)
class Saturation(_Factor):
    """Multiplies the distance of each pixel from its own luma by a factor.

    Args:
        strength: factor, 0 to 10; 0 leaves a grey image.
    """

    name = "saturation"

    strength: float = 1.5

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        return images if self.is_identity else blend(luma(images), images, self.strength)


@register
@dataclass(frozen=True, repr=False)
class Grey(Attack):
    """Takes the colours out of the image: what is left is its luma.

    Args:
        strength: fraction of the colour that is taken away, 0 to 1; at 1 all three channels are equal.
    """

    name = "grey"
    kind = "D"
    unit = "of the colour"
    sweep = (1,)
    identity = 0
    bounds = (0, 1)

    strength: float = 1

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        return images if self.is_identity else blend(luma(images), images, 1 - self.strength).expand_as(images)


@register
@dataclass(frozen=True, repr=False)
class Gamma(_Factor):
    """Raises all pixel values to a power.

    Args:
        strength: power, 0.1 to 10; above 1 it darkens the middle tones, below 1 it lightens them. Below 1, pixel
            values under 1e-6 count as 1e-6.
    """

    name = "gamma"
    bounds = (0.1, 10)

    strength: float = 1.5

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        return images.clamp_min(GAMMA_FLOOR if self.strength < 1 else 0) ** self.strength


@register
@dataclass(frozen=True, repr=False)
class Sharpness(_Factor):
    """Multiplies the distance of each pixel from a smoothed image by a factor.

    The smoothing is Pillow's: a window of 3 x 3 pixels, with weights 1 around 5, over 13. The outermost pixels stay
    as they are, as there.

    Args:
        strength: factor, 0 to 10; below 1 the image becomes smoother, above 1 sharper.
    """

    name = "sharpness"

    strength: float = 1.5

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity or min(images.shape[-2:]) < 3:
            return images
        neighbours = 9 * avg_pool2d(images, 3, stride=1)
        inner = images[..., 1:-1, 1:-1]
        sharp = blend((neighbours + 4 * inner) / 13, inner, self.strength)
        out = images.clone()
        out[..., 1:-1, 1:-1] = sharp
        return out


def hue_matrix(degrees: float) -> Tensor:
    """Return the 3 x 3 matrix, float64, that turns RGB colours about the grey axis and keeps their luma.

    It is a rotation about (1, 1, 1) (Rodrigues' formula), and the step along that axis that restores the luma.
    """
    angle = math.radians(degrees)
    one = torch.ones(3, 3, dtype=torch.float64) / 3
    cross = torch.tensor([[0, -1, 1], [1, 0, -1], [-1, 1, 0]], dtype=torch.float64) / math.sqrt(3)
    turn = math.cos(angle) * (torch.eye(3, dtype=torch.float64) - one) + math.sin(angle) * cross + one
    weights = torch.tensor(LUMA, dtype=torch.float64)
    return turn + (weights - weights @ turn)


@register
@dataclass(frozen=True, repr=False)
class Hue(Attack):
    """Turns all colours about the grey axis and keeps their luma; colours out of range are clipped.

    Args:
        strength: angle, -180 to 180 degrees, from red towards green.
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
