"""Distortions in a row as in WAVES (arXiv 2401.08573), each at the same relative strength."""

from dataclasses import dataclass

from privgen.attacks.compose import Combination
from privgen.attacks.distortions.degradation import JPEG, Blur, Noise
from privgen.attacks.distortions.geometric import Crop, Erase, Rotation
from privgen.attacks.distortions.photometric import Brightness, Contrast
from privgen.attacks.registry import register


@register
@dataclass(frozen=True, repr=False)
class Geometric(Combination):
    """Rotates the image, crops and resizes it, and erases a rectangle.

    Args:
        strength: fraction of the way from each of these attacks' identity (0) to the end of its sweep (1).
    """

    name = "geometric"
    members = (Rotation, Crop, Erase)


@register
@dataclass(frozen=True, repr=False)
class Photometric(Combination):
    """Makes the image brighter, and raises its contrast.

    Args:
        strength: fraction of the way from each of these attacks' identity (0) to the end of its sweep (1).
    """

    name = "photometric"
    members = (Brightness, Contrast)


@register
@dataclass(frozen=True, repr=False)
class Degradation(Combination):
    """Blurs the image, adds noise, and compresses it as JPEG.

    Args:
        strength: fraction of the way from each of these attacks' identity (0) to the end of its sweep (1).
    """

    name = "degradation"
    members = (Blur, Noise, JPEG)


@register
@dataclass(frozen=True, repr=False)
class All(Combination):
    """Does all that `geometric`, `photometric` and `degradation` do, in this order.

    Args:
        strength: fraction of the way from each of these attacks' identity (0) to the end of its sweep (1).
    """

    name = "all"
    members = (*Geometric.members, *Photometric.members, *Degradation.members)
