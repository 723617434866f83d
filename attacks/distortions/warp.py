"""Small smooth warps: every part of the image moves a little, and neighbours move together."""

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate

from privgen.attacks.base import Attack
from privgen.attacks.draws import Draws, draw_normal
from privgen.attacks.registry import register


def smooth_field(images: Tensor, cells: int, generators: Draws) -> Tensor:
    """Draw a smooth random displacement of every pixel.

    The displacements of a coarse grid of points are drawn from a normal distribution, and bicubic interpolation joins
    them. So they vary as slowly upwards as sideways, whatever the aspect ratio.

    Args:
        images: (B, 3, H, W); only the size, type and device count.
        cells: cells of the grid along the shorter side.
        generators: one for each image.

    Returns:
        (B, 2, H, W), sideways and downwards. The longest displacement of an image has length 1.
    """
    height, width = images.shape[-2:]
    short = min(height, width)
    points = [1 + max(1, round(cells * side / short)) for side in (height, width)]
    coarse = draw_normal(images.new_empty(len(images), 2, *points), generators)
    field = interpolate(coarse, size=(height, width), mode="bicubic", align_corners=True)
    longest = field.square().sum(1, keepdim=True).amax((2, 3), keepdim=True).sqrt()
    return field / longest


@register
@dataclass(frozen=True, repr=False)
class MicroWarp(Attack):
    """Moves every part of the image by a little, smoothly and at random.

    Such displacements are hard to see, and they move marks out of the place where a detector looks for them
    (MarkCleaner, arXiv 2602.01513, which trains a network to make them). Here they are drawn at random, and pixels are
    read by bicubic interpolation. Beyond the edges, the outermost pixels repeat.

    Args:
        strength: the longest displacement, 0 to 20, in pixels of an image whose shorter side is `reference`.
        cells: how many parts the shorter side has that move in different ways, 1 to 64. With more cells the warp is
            less smooth.
        reference: shorter side in pixels that the strength refers to; None takes the image's own pixels.
    """

    name = "micro_warp"
    kind = "D"
    unit = "px at 512"
    sweep = (0.5, 1, 2, 3, 4)
    identity = 0
    bounds = (0, 20)

    strength: float = 2
    _: KW_ONLY
    cells: int = 6
    reference: int | None = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.cells not in range(1, 65):
            raise ValueError(f"micro_warp: expected a whole number of cells in [1, 64], got {self.cells!r}")
        if self.reference is not None and self.reference < 1:
            raise ValueError(f"micro_warp: expected a reference >= 1 or None, got {self.reference}")

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        height, width = images.shape[-2:]
        scale = 1 if self.reference is None else min(height, width) / self.reference
        shift = self.strength * scale * smooth_field(images, self.cells, generators)
        y = torch.arange(height, device=images.device, dtype=images.dtype)[:, None] + shift[:, 1]
        x = torch.arange(width, device=images.device, dtype=images.dtype) + shift[:, 0]
        grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
        return grid_sample(images, grid, mode="bicubic", padding_mode="border", align_corners=False)
