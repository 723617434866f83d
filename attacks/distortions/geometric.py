"""Distortions that move or remove pixels: rotation, crop, mirror images, scaling, erasing.

The ranges are those of WAVES, "Benchmarking the Robustness of Image Watermarks", arXiv 2401.08573.
"""

import math
from dataclasses import KW_ONLY, dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from privgen.attacks.base import Attack, ResizingAttack
from privgen.attacks.draws import Draws, draw_uniform
from privgen.attacks.registry import register
from privgen.io.pixels import resize


def _sample(images: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Read images bilinearly at pixel coordinates x, y of shape (B or 1, H, W); it is black outside.

    Whole coordinates are pixel centres, so (0, 0) is the first pixel.
    """
    height, width = images.shape[-2:]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return grid_sample(images, grid.expand(len(images), -1, -1, -1), align_corners=False)


def rotate(images: Tensor, degrees: float) -> Tensor:
    """Rotate images counter-clockwise about the centre. They keep their size; what comes in from outside is black.

    Args:
        images: (B, 3, H, W).
        degrees: angle.
    """
    height, width = images.shape[-2:]
    y = torch.arange(height, device=images.device, dtype=images.dtype)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=images.device, dtype=images.dtype)[None, :] - (width - 1) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    source_x = x * cos - y * sin + (width - 1) / 2
    source_y = x * sin + y * cos + (height - 1) / 2
    return _sample(images, source_x[None], source_y[None])


@register
@dataclass(frozen=True, repr=False)
class Rotation(Attack):
    """Rotates the image about its centre; it keeps its size, and the corners become black.

    Args:
        strength: angle, -180 to 180 degrees, counter-clockwise.
    """

    name = "rotation"
    kind = "D"
    unit = "degrees"
    sweep = (5, 10, 22.5, 30, 45)
    identity = 0
    bounds = (-180, 180)

    strength: float = 22.5

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        return images if self.is_identity else rotate(images, self.strength)


def _window(size: tuple[int, int], area: float) -> tuple[int, int]:
    """Return height and width in pixels of a window with a fraction of the image's area, and its aspect ratio."""
    side = math.sqrt(area)
    return max(1, round(size[0] * side)), max(1, round(size[1] * side))


def _corners(draws: Tensor, free: tuple[int, int]) -> Tensor:
    """Return first row and column of windows, (B, 2), each of 0..free equally likely, for (B, 2) draws in [0, 1)."""
    slots = torch.tensor([free[0] + 1, free[1] + 1], device=draws.device)
    # A float32 draw just below 1 may round up to the whole.
    return (draws * slots).floor().minimum(slots - 1)


def resized_crop(images: Tensor, window: tuple[int, int], corners: Tensor) -> Tensor:
    """Cut a window out of each image and stretch it, bilinearly, to the image's size.

    Args:
        images: (B, 3, H, W).
        window: height and width in pixels.
        corners: first row and column of each window, (B, 2).
    """
    height, width = images.shape[-2:]
    axes = []
    for size, part, first in zip((height, width), window, corners.T, strict=True):
        place = (torch.arange(size, device=images.device, dtype=images.dtype) + 0.5) * (part / size) - 0.5
        # A crop has nothing beyond its edge: clamping keeps its neighbours in the image out.
        axes.append(place.clamp(0, part - 1) + first[:, None])
    y, x = axes[0][:, :, None], axes[1][:, None, :]
    return _sample(images, x.expand(-1, height, -1), y.expand(-1, -1, width))


Place: TypeAlias = Literal["random", "centre"]


def check_place(name: str, place: str) -> None:
    """Raise ValueError unless the place is "random" or "centre"."""
    if place not in ("random", "centre"):
        raise ValueError(f"{name}: expected place 'random' or 'centre', got {place!r}")


def place_window(images: Tensor, window: tuple[int, int], place: Place, generators: Draws) -> Tensor:
    """Return first row and column, (B, 2), of a window in each image: in its centre, or drawn."""
    draws = images.new_full((len(images), 2), 0.5) if place == "centre" else draw_uniform(images, 2, generators)
    return _corners(draws, (images.shape[-2] - window[0], images.shape[-1] - window[1]))


def cut(images: Tensor, window: tuple[int, int], corners: Tensor) -> Tensor:
    """Cut a window out of each image; no pixel changes.

    Args:
        images: (B, 3, H, W).
        window: height and width in pixels.
        corners: first row and column of each window, (B, 2).

    Returns:
        (B, 3, *window).
    """
    height, width = window
    parts = [
        image[:, top : top + height, left : left + width]
        for image, (top, left) in zip(images, corners.long().tolist(), strict=True)
    ]
    return torch.stack(parts)


@register
@dataclass(frozen=True, repr=False)
class Crop(Attack):
    """Cuts out a part of the image, with the image's aspect ratio, and resizes it to the image's size.

    Args:
        strength: fraction of the area that is kept, 0.01 to 1. The sides of the part are rounded to whole pixels.
        place: "random" or "centre".
        size: "image" resizes the part to the image's size, "own" leaves it as it was cut out.
    """

    name = "crop"
    kind = "D"
    unit = "of the area kept"
    sweep = (0.9, 0.8, 0.75, 0.6, 0.5)
    identity = 1
    bounds = (0.01, 1)

    strength: float = 0.75
    _: KW_ONLY
    place: Place = "random"
    size: Literal["image", "own"] = "image"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_place(self.name, self.place)
        if self.size not in ("image", "own"):
            raise ValueError(f"crop: expected size 'image' or 'own', got {self.size!r}")

    @property
    def keeps_size(self) -> bool:
        """Whether the part is resized to the image's size."""
        return self.size == "image"

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        window = _window((images.shape[-2], images.shape[-1]), self.strength)
        corners = place_window(images, window, self.place, generators)
        return resized_crop(images, window, corners) if self.keeps_size else cut(images, window, corners)


@register
@dataclass(frozen=True, repr=False)
class Erase(Attack):
    """Paints a rectangle at a random place in one grey level; it has the image's aspect ratio.

    Args:
        strength: fraction of the area that is erased, 0 to 1. The sides are rounded to whole pixels.
        value: grey level in [0, 1].
    """

    name = "erase"
    kind = "D"
    unit = "of the area erased"
    sweep = (0.05, 0.1, 0.125, 0.2, 0.25)
    identity = 0
    bounds = (0, 1)

    strength: float = 0.125
    _: KW_ONLY
    value: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.value <= 1:
            raise ValueError(f"erase: expected a value in [0, 1], got {self.value!r}")

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        size = images.shape[-2], images.shape[-1]
        window = _window(size, self.strength)
        corners = _corners(draw_uniform(images, 2, generators), (size[0] - window[0], size[1] - window[1]))
        inside = []
        for side, part, first in zip(size, window, corners.T, strict=True):
            distance = torch.arange(side, device=images.device) - first[:, None]  # (B, side)
            inside.append((distance >= 0) & (distance < part))
        erased = inside[0][:, None, :, None] & inside[1][:, None, None, :]  # (B, 1, H, W)
        return images.masked_fill(erased, self.value)


@register
@dataclass(frozen=True, repr=False)
class Flip(Attack):
    """Mirrors the image.

    Args:
        strength: 1 mirrors the image, 0 leaves it.
        axis: "horizontal" swaps left and right, "vertical" swaps top and bottom.
    """

    name = "flip"
    kind = "D"
    unit = "mirrorings"
    sweep = (1,)
    identity = 0
    bounds = (0, 1)
    whole = True

    strength: float = 1
    _: KW_ONLY
    axis: Literal["horizontal", "vertical"] = "horizontal"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.axis not in ("horizontal", "vertical"):
            raise ValueError(f"flip: expected axis 'horizontal' or 'vertical', got {self.axis!r}")

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        return images if self.is_identity else images.flip(-1 if self.axis == "horizontal" else -2)


@register
@dataclass(frozen=True, repr=False)
class Scale(ResizingAttack):
    """Resizes the image and leaves it at its new size.

    The filter is bicubic and antialiased, the same as that of Pillow.

    Args:
        strength: factor, 0.01 to 8, for height and width. They are rounded to whole pixels, at least 1.
    """

    name = "scale"
    kind = "D"
    unit = "factor"
    sweep = (0.8, 0.6, 0.5, 0.25, 0.2)
    identity = 1
    bounds = (0.01, 8)

    strength: float = 0.5

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        return resize(images, [max(1, round(side * self.strength)) for side in images.shape[-2:]])
