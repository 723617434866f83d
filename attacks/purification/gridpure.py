"""GrIDPure: many gentle purifications in overlapping tiles, for images of any size."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from privgen.attacks.draws import spawn
from privgen.attacks.purification.denoiser import Denoiser
from privgen.attacks.purification.diffpure import DenoiserAttack, purify, steps_of
from privgen.attacks.purification.reverse import count_evaluations
from privgen.attacks.registry import register
from privgen.attacks.steps import Work
from privgen.errors import PrivgenError


BATCH_SIZE = 16
"""How many tiles go through the model together."""


def tile_starts(length: int, tile: int, stride: int) -> list[int]:
    """Return where tiles begin along a side: every `stride` pixels, and the last one where it ends with the side."""
    if length <= tile:
        return [0]
    return [*range(0, length - tile, stride), length - tile]


def purify_tiles(
    denoiser: Denoiser, images: Tensor, t_star: int, generators: list[torch.Generator], *, tile: int, stride: int
) -> Tensor:
    """Purify each tile by itself, and average where tiles overlap.

    Args:
        denoiser: the model.
        images: (B, 3, H, W) in [0, 1]; sides of any length.
        t_star: noise, in steps of the model's schedule, at least 1.
        generators: one for each image.
        tile: side of a tile in pixels; a smaller image is one tile.
        stride: distance from tile to tile in pixels.

    Returns:
        (B, 3, H, W), on the device of `images`.
    """
    height, width = images.shape[-2:]
    places = [(top, left) for top in tile_starts(height, tile, stride) for left in tile_starts(width, tile, stride)]
    total, count = torch.zeros_like(images), torch.zeros_like(images[:1, :1])
    for top, left in places:
        count[..., top : top + tile, left : left + tile] += 1
    # Each tile has a generator of its own, so it does not matter which tiles go through the model together.
    work = [
        (image, top, left, source)
        for image, own in enumerate(generators)
        for (top, left), source in zip(places, spawn([own] * len(places)), strict=True)
    ]
    for first in range(0, len(work), BATCH_SIZE):
        group = work[first : first + BATCH_SIZE]
        tiles = torch.stack([images[image, :, top : top + tile, left : left + tile] for image, top, left, _ in group])
        pure = purify(denoiser, tiles, t_star, [source for *_, source in group]).to(images)
        for (image, top, left, _), result in zip(group, pure, strict=True):
            total[image, :, top : top + tile, left : left + tile] += result
    return total / count


@register
@dataclass(frozen=True, repr=False)
class GrIDPure(DenoiserAttack):
    """Adds a little noise and takes it away, many times, in overlapping tiles (GrIDPure, arXiv 2312.00084, section 4).

    Each round purifies the tiles with the model's own chain, and keeps a fraction of the image that it was given.

    Args:
        strength: number of rounds, 0 to 1000.
        t_star: noise of each round, 1 to 1000, in steps of a schedule of 1000.
        blend: fraction of the current image that a round keeps, 0 up to but not 1.
        tile: side of a tile in pixels, at least 2; a new tile begins every half of it. By default the size that the
            model was trained on.
        model: an embedded model's name, a folder, a Hub id, a Diffusers pipeline, or a `Denoiser`.
        space: see `DiffPure`, also for the other parameters.
        fit: as in `DiffPure`, for images that are larger than a square two tiles wide, the grid of the paper. "tiles"
            and "whole" are the same: the grid covers the image at its own size.
    """

    name = "gridpure"
    unit = "rounds"
    sweep = (10, 12, 15, 18, 20)
    bounds = (0, 1000)
    whole = True

    strength: float = 15
    _: KW_ONLY
    t_star: int = 10
    blend: float = 0.1
    tile: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (1 <= self.t_star <= 1000 and 0 <= self.blend < 1):
            raise ValueError(
                f"gridpure: expected t_star in 1..1000 and blend in [0, 1), got {self.t_star} and {self.blend}"
            )
        if self.tile is not None and self.tile < 2:
            raise ValueError(f"gridpure: expected tile >= 2, got {self.tile}")

    def _canvas(self) -> int:
        """A grid of tiles two tiles wide, as in the paper, or the size of the model's images if that is larger."""
        return max(2 * self._tile(), self._denoiser().canvas or 0)

    def _tile(self) -> int:
        tile = self.tile or self._denoiser().size
        if tile is None:
            raise PrivgenError("gridpure: this model does not say its image size; give --tile (tile= in Python).")
        return tile

    def _steps(self) -> int:
        return int(self.strength) * count_evaluations("ddpm", steps_of(self._denoiser(), self.t_star))

    def _work_at(self, height: int, width: int) -> Work:
        tile = self._tile()
        tiles = len(tile_starts(height, tile, tile // 2)) * len(tile_starts(width, tile, tile // 2))
        return Work(tiles, self._steps(), min(tile, height) * min(tile, width))

    def _work_in_tiles(self, height: int, width: int, canvas: int) -> Work:
        return self._work_at(height, width)

    def _purify_tiles(self, images: Tensor, generators: list[torch.Generator], canvas: int) -> Tensor:
        # It works in tiles at any size.
        return self._purify(images, generators)

    def _purify(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        denoiser, tile = self._denoiser(), self._tile()
        t_star = steps_of(denoiser, self.t_star)
        for _ in range(int(self.strength)):
            pure = purify_tiles(denoiser, images, t_star, generators, tile=tile, stride=tile // 2)
            images = ((1 - self.blend) * pure + self.blend * images).clamp(0, 1)
        return images
