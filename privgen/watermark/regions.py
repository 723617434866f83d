"""Regions: the parts of an image that keys own."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Region:
    """A part of an image in which a key's mark was found.

    Attributes:
        key: name of the key.
        key_id: its public id.
        box: left, top, right and bottom edge, as fractions of the image's width and height.
        p_value: corrected for all that was tried.
        mask: (h, w) of 0 and 1, where the mark is, of the shape of the image and smaller; None for the whole image.
        heat: (h, w) in [0, 1], how clearly the mark is at each place; None for the whole image.
        matches: bits that agree with the key's.
        pose: in words, how the part lies in this image; None if it lies where it was marked.
        payload: the ID that the mark carries; None if it carries none that can be read.
    """

    key: str
    key_id: str
    box: tuple[float, float, float, float]
    p_value: float
    mask: Tensor | None = field(default=None, repr=False, compare=False)
    heat: Tensor | None = field(default=None, repr=False, compare=False)
    matches: int = 0
    pose: str | None = None
    payload: int | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the region is the whole image."""
        return self.mask is None

    def record(self) -> dict[str, Any]:
        """One flat mapping, for JSON; without the planes."""
        return {name: value for name, value in vars(self).items() if name not in ("mask", "heat")}

    def place(self) -> str:
        """The region in words."""
        if self.is_whole:
            return "the whole image"
        left, top, right, bottom = (f"{100 * edge:.0f}" for edge in self.box)
        return f"{left} to {right} % of the width and {top} to {bottom} % of the height"


WHOLE_IMAGE = (0.0, 0.0, 1.0, 1.0)
"""The box of a mark that spans the image."""
