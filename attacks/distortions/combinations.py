"""Distortions combined as in WAVES, arXiv 2401.08573, each at the same relative strength."""

from dataclasses import dataclass

from privgen.attacks.compose import Combination
from privgen.attacks.distortions.degradation import JPEG, Blur, Noise
from privgen.attacks.distortions.geometric import Crop, Erase, Rotation
from privgen.attacks.distortions.photometric import Brightness, Contrast
from privgen.attacks.registry import register


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class Geometric(Combination):
    """Rotation, resized crop and erasing."""

    name = "geometric"
    members = (Rotation, Crop, Erase)


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class Photometric(Combination):
    """Brightness and contrast."""

    name = "photometric"
    members = (Brightness, Contrast)


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class Degradation(Combination):
    """Blur, noise and JPEG."""

    name = "degradation"
    members = (Blur, Noise, JPEG)


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class All(Combination):
    """Everything in the other three, in their order."""

    name = "all"
    members = (*Geometric.members, *Photometric.members, *Degradation.members)
