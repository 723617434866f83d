"""Distortions of the canvas: borders, other aspect ratios, collages. No pixel of the image itself changes."""

import math
from dataclasses import KW_ONLY, dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from PIL import Image, ImageColor, ImageOps
from torch import Tensor

from privgen.attacks.base import ResizingAttack
from privgen.attacks.distortions.geometric import Place, check_place, cut, place_window
from privgen.attacks.draws import Draws, draw_uniform
from privgen.attacks.registry import register
from privgen.errors import PrivgenError


def parse_colour(name: str, text: str) -> tuple[float, float, float]:
    """Return red, green and blue in [0, 1] of a colour in words ("white") or in figures ("#f0e0d0").

    Raises:
        ValueError: no colour; the message begins with `name`, that of the attack.
    """
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(f"{name}: expected a colour such as 'white' or '#f0e0d0', got {text!r}") from error
    return red / 255, green / 255, blue / 255


def parse_ratio(name: str, text: str) -> float:
    """Return width divided by height of an aspect ratio that is written as "4:5".

    Raises:
        ValueError: no ratio of numbers above 0; the message begins with `name`, that of the attack.
    """
    try:
        width, height = (float(part) for part in text.split(":"))
        ratio = width / height
    except (ValueError, AttributeError, ZeroDivisionError):
        ratio = math.nan
    if not 0.01 <= ratio <= 100:
        raise ValueError(f"{name}: expected an aspect ratio such as '4:5', from '1:100' to '100:1', got {text!r}")
    return ratio


def blank(images: Tensor, size: tuple[int, int], colour: tuple[float, float, float]) -> Tensor:
    """Return a canvas of one colour for each image, (B, 3, *size)."""
    return images.new_tensor(colour)[:, None, None].expand(len(images), 3, *size).clone()


@register
@dataclass(frozen=True, repr=False)
class Border(ResizingAttack):
    """Puts a border of one colour around the image, as documents and posts have it.

    Args:
        strength: width of the border, 0 to 2, as a fraction of the image's shorter side, rounded to whole pixels.
        colour: in words ("white") or in figures ("#f0e0d0").
    """

    name = "border"
    kind = "D"
    unit = "of the shorter side"
    sweep = (0.02, 0.05, 0.1, 0.2, 0.4)
    identity = 0
    bounds = (0, 2)

    strength: float = 0.1
    _: KW_ONLY
    colour: str = "white"

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_colour(self.name, self.colour)

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        height, width = images.shape[-2:]
        border = round(self.strength * min(height, width))
        canvas = blank(images, (height + 2 * border, width + 2 * border), parse_colour(self.name, self.colour))
        canvas[..., border : border + height, border : border + width] = images
        return canvas


@register
@dataclass(frozen=True, repr=False)
class Pad(ResizingAttack):
    """Puts bars of one colour beside the image, until the canvas has another aspect ratio.

    Args:
        strength: how far the aspect ratio goes from the image's own (0) to `ratio` (1).
        ratio: width to height, such as "4:5" or "16:9".
        place: "centre" puts the image in the middle, "random" anywhere.
        colour: in words ("black") or in figures ("#f0e0d0").
    """

    name = "pad"
    kind = "D"
    unit = "of the way to the ratio"
    sweep = (1,)
    identity = 0
    bounds = (0, 1)

    strength: float = 1
    _: KW_ONLY
    ratio: str = "1:1"
    place: Place = "centre"
    colour: str = "black"

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_ratio(self.name, self.ratio)
        check_place(self.name, self.place)
        parse_colour(self.name, self.colour)

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        height, width = images.shape[-2:]
        ratio = _between(width / height, parse_ratio(self.name, self.ratio), self.strength)
        size = max(height, round(width / ratio)), max(width, round(height * ratio))
        canvas = blank(images, size, parse_colour(self.name, self.colour))
        corners = place_window(canvas, (height, width), self.place, generators).long().tolist()
        for i, (top, left) in enumerate(corners):
            canvas[i, :, top : top + height, left : left + width] = images[i]
        return canvas


@register
@dataclass(frozen=True, repr=False)
class AspectCrop(ResizingAttack):
    """Cuts the largest part of another aspect ratio out of the image, and leaves it at its own size.

    Args:
        strength: how far the aspect ratio goes from the image's own (0) to `ratio` (1).
        ratio: width to height, such as "4:5" or "16:9".
        place: "centre" or "random".
    """

    name = "aspect_crop"
    kind = "D"
    unit = "of the way to the ratio"
    sweep = (1,)
    identity = 0
    bounds = (0, 1)

    strength: float = 1
    _: KW_ONLY
    ratio: str = "1:1"
    place: Place = "centre"

    def __post_init__(self) -> None:
        super().__post_init__()
        parse_ratio(self.name, self.ratio)
        check_place(self.name, self.place)

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        height, width = images.shape[-2:]
        ratio = _between(width / height, parse_ratio(self.name, self.ratio), self.strength)
        window = min(height, max(1, round(width / ratio))), min(width, max(1, round(height * ratio)))
        return cut(images, window, place_window(images, window, self.place, generators))


def _between(own: float, other: float, fraction: float) -> float:
    """Return the aspect ratio at a fraction of the way between two; ratios are compared by their quotients."""
    return own * (other / own) ** fraction


@register
@dataclass(frozen=True, repr=False)
class Collage(ResizingAttack):
    """Makes the image one tile of a collage, at a random place among tiles of the same size.

    The tiles form a grid of about as many rows as columns, and the image keeps its own size. To have it smaller, scale
    it before.

    Args:
        strength: number of tiles, 1 to 25, the image included.
        others: "photographs" fills the other tiles with photographs of the package, "colours" with plain colours, both
            drawn at random.
        gap: width of the gaps between tiles, 0 to 1, as a fraction of the image's shorter side.
        colour: of the gaps and of what is left over, in words ("white") or in figures ("#f0e0d0").
    """

    name = "collage"
    kind = "D"
    unit = "tiles"
    sweep = (2, 3, 4, 6, 9)
    identity = 1
    bounds = (1, 25)
    whole = True

    strength: float = 4
    _: KW_ONLY
    others: Literal["photographs", "colours"] = "photographs"
    gap: float = 0.02
    colour: str = "white"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.others not in ("photographs", "colours"):
            raise ValueError(f"collage: expected others 'photographs' or 'colours', got {self.others!r}")
        if not 0 <= self.gap <= 1:
            raise ValueError(f"collage: expected a gap in [0, 1], got {self.gap!r}")
        parse_colour(self.name, self.colour)

    def prepare(self) -> None:
        if self.others == "photographs":
            _photographs()

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        height, width = images.shape[-2:]
        tiles, gap = int(self.strength), round(self.gap * min(height, width))
        columns = math.ceil(math.sqrt(tiles))
        rows = math.ceil(tiles / columns)
        size = rows * (height + gap) - gap, columns * (width + gap) - gap
        canvas = blank(images, size, parse_colour(self.name, self.colour))
        draws = draw_uniform(images, 1 + 3 * tiles, generators)
        for i, image in enumerate(images):
            own = min(int(draws[i, 0] * tiles), tiles - 1)
            for tile in range(tiles):
                top, left = tile // columns * (height + gap), tile % columns * (width + gap)
                content = image if tile == own else self._other(image, draws[i, 1 + 3 * tile : 4 + 3 * tile])
                canvas[i, :, top : top + height, left : left + width] = content
        return canvas

    def _other(self, image: Tensor, draws: Tensor) -> Tensor:
        """Return what fills another tile: broadcastable to the image, from three draws in [0, 1)."""
        if self.others == "colours":
            return draws[:, None, None]
        paths = _photographs()
        with Image.open(paths[min(int(draws[0] * len(paths)), len(paths) - 1)]) as photograph:
            fitted = ImageOps.fit(photograph.convert("RGB"), (image.shape[-1], image.shape[-2]))
        return torch.from_numpy(np.array(fitted)).permute(2, 0, 1).to(image) / 255


@cache
def _photographs() -> tuple[Path, ...]:
    """Return the packaged photographs, without those that only tests may use.

    Raises:
        PrivgenError: there are none.
    """
    found = tuple(sorted(Path(str(files("privgen") / "data" / "photos" / "train")).glob("*.jpg")))
    if not found:
        raise PrivgenError("The package has no photographs for a collage; choose others=colours.")
    return found
