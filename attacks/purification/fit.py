"""How an attack with a model of one size is fitted to photographs of any size."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import Literal, TypeAlias, final, get_args

import torch
from torch import Tensor

from privgen.attacks.draws import spawn
from privgen.attacks.model_attack import ModelAttack
from privgen.attacks.steps import Work
from privgen.io.pixels import resize


Fit: TypeAlias = Literal["resize", "tiles", "whole"]
FITS: tuple[Fit, ...] = get_args(Fit)

BATCH_PIXELS = 2**18
"""How many pixels of tiles go through the model together, at most, if one tile has not more."""


@dataclass(frozen=True, repr=False)
class FittedAttack(ModelAttack):
    """An attack whose model has learnt images of one size.

    Subclasses write `_purify`, `_canvas` and `_steps` instead of `_attack`. An image with no more pixels than the
    square of the model's size is attacked as it is. `fit` says what happens to larger ones:

    - "resize": the image is made as small as that square, with its own aspect ratio, and attacked. The residual, which
      is the attacked image minus the small one, is enlarged and added to the image. Its fine detail stays, and so does
      what is hidden in it.
    - "tiles": overlapping tiles of the model's size are attacked, and blended where they overlap.
    - "whole": the image goes through the model at its own size, in one piece.

    Args:
        strength: see the subclass.
        fit: "resize", "tiles" or "whole".
        model: see the subclass.
        device: device for a model given by name.
        dtype: precision of the weights of a model given by name.
    """

    _: KW_ONLY
    fit: Fit = "resize"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit not in FITS:
            raise ValueError(f"{self.name}: expected fit {', '.join(FITS)}, got {self.fit!r}")

    @abstractmethod
    def _purify(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Attack as `_attack` does, at the size of the images, and call `step_done` after each step of the model."""

    @abstractmethod
    def _canvas(self) -> int | None:
        """The model's size, as the side of a square in pixels; None if the model does not say it."""

    @abstractmethod
    def _steps(self) -> int:
        """How many steps of the model `_purify` takes for an image or tile."""

    @final
    def _attack(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        height, width = images.shape[-2:]
        canvas = self._canvas_below(height, width)
        if canvas is None:
            return self._purify(images, generators)
        if self.fit == "tiles":
            return self._purify_tiles(images, generators, canvas)
        small = resize(images, shrunk(height, width, canvas)).clamp(0, 1)
        residual = self._purify(small, generators).to(images) - small
        return images + resize(residual, (height, width))

    def _purify_tiles(self, images: Tensor, generators: list[torch.Generator], canvas: int) -> Tensor:
        """Attack tiles of the canvas, each by itself, and blend them."""
        height, width = images.shape[-2:]
        tile = min(canvas, height), min(canvas, width)
        places = [(top, left) for top in _starts(height, tile[0]) for left in _starts(width, tile[1])]
        ramp = _ramp(tile[0])[:, None] * _ramp(tile[1])
        weight = ramp.to(images)
        total, weights = torch.zeros_like(images), torch.zeros_like(images[:1, :1])
        # Each tile has a generator of its own, so it does not matter which tiles go through the model together.
        work = [
            (image, (..., slice(top, top + tile[0]), slice(left, left + tile[1])), source)
            for image, own in enumerate(generators)
            for (top, left), source in zip(places, spawn([own] * len(places)), strict=True)
        ]
        group = max(1, BATCH_PIXELS // (tile[0] * tile[1]))
        for first in range(0, len(work), group):
            some = work[first : first + group]
            tiles = torch.stack([images[image][place] for image, place, _ in some])
            made = self._purify(tiles, [source for *_, source in some]).to(images)
            for (image, place, _), result in zip(some, made, strict=True):
                total[image][place] += weight * result
        for top, left in places:
            weights[..., top : top + tile[0], left : left + tile[1]] += weight
        return total / weights

    def work(self, height: int, width: int) -> tuple[Work, ...]:
        if self.is_identity:
            return ()
        canvas = self._canvas_below(height, width)
        if canvas is None:
            return (self._work_at(height, width),)
        if self.fit == "tiles":
            return (self._work_in_tiles(height, width, canvas),)
        return (self._work_at(*shrunk(height, width, canvas)),)

    def _work_in_tiles(self, height: int, width: int, canvas: int) -> Work:
        """What `_purify_tiles` does for an image."""
        tile = min(canvas, height), min(canvas, width)
        tiles = len(_starts(height, tile[0])) * len(_starts(width, tile[1]))
        return Work(tiles, self._steps(), tile[0] * tile[1])

    def _work_at(self, height: int, width: int) -> Work:
        """What `_purify` does for an image."""
        return Work(1, self._steps(), height * width)

    def notes(self, height: int, width: int) -> tuple[str, ...]:
        canvas = None if self.is_identity else self._canvas_below(height, width)
        if canvas is None:
            return ()
        if self.fit == "tiles":
            return (f"{self.name} worked in overlapping tiles at full size",)
        low = shrunk(height, width, canvas)
        return (
            f"{self.name} worked at {low[1]} x {low[0]} pixels, and its change was enlarged, so fine detail is the "
            "original's; privgen purify --full (fit=tiles) works at full size",
        )

    def _canvas_below(self, height: int, width: int) -> int | None:
        """The side of the model's square, if images are larger and `fit` asks for it; else None."""
        canvas = None if self.fit == "whole" else self._canvas()
        return canvas if canvas is not None and height * width > canvas**2 else None


def shrunk(height: int, width: int, canvas: int) -> tuple[int, int]:
    """Return the height and width of an image that is made as small as a square, with its own aspect ratio.

    Args:
        height: of the image.
        width: of the image.
        canvas: side of the square.
    """
    scale = canvas / math.sqrt(height * width)
    return max(1, round(scale * height)), max(1, round(scale * width))


def _starts(length: int, tile: int) -> list[int]:
    """Where tiles begin along a side: evenly, and with overlaps of an eighth of a tile or more."""
    overlap = tile // 8
    count = 1 + math.ceil((length - tile) / max(tile - overlap, 1))
    return [round(i * (length - tile) / max(count - 1, 1)) for i in range(count)]


def _ramp(length: int) -> Tensor:
    """Weights along a side of a tile: they rise over an eighth of it, and fall over the last eighth."""
    place = torch.arange(1, length + 1, dtype=torch.float64)
    return torch.minimum(place, place.flip(0)).clamp(max=max(length // 8, 1))
