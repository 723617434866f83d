"""Regions: the parts of an image that keys own."""

from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class Region:
    """A part of an image in which a key's mark was found.

    Attributes:
        key: name of the key.
        key_id: its public id.
        box: left, top, right and bottom edge, as fractions of the image's width and height.
        p_value: corrected for all that was tried.
        mask: (h, w) in [0, 1], of the shape of the image and about 64 pixels along its short side: how clearly the
            mark is there; None for the whole image.
    """

    key: str
    key_id: str
    box: tuple[float, float, float, float]
    p_value: float
    mask: Tensor | None = field(default=None, repr=False, compare=False)


WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)
"""The box of a mark that spans the image."""
