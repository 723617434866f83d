"""Where an image lies on the canvas that was marked: cut-outs and rotations, and how they are put back.

A mark is fixed to the canvas, so a reader must know which part of it an image shows. `Poses` say so; `put_back` lays
images on their places, and says what of the canvas was seen.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


@dataclass(frozen=True, eq=False)
class Poses:
    """What part of the canvas each of B images shows; lengths in sides of the canvas.

    Attributes:
        values: (B, 4) float32: side of the window, its left and its upper edge, degrees by which it is turned
            counter-clockwise about its centre.
    """

    values: Tensor

    @classmethod
    def of(cls, *, side: float = 1.0, left: float = 0.0, top: float = 0.0, degrees: float = 0.0) -> "Poses":
        """One pose."""
        return cls(torch.tensor([[side, left, top, degrees]]))

    def __len__(self) -> int:
        return len(self.values)

    def expand(self, count: int) -> "Poses":
        """One pose for each of so many images."""
        return Poses(self.values.expand(count, -1))


def take(images: Tensor, poses: Poses, aspect: Tensor | float = 1.0) -> Tensor:
    """Show the part of each canvas that its pose says, at the canvas's own size; black beyond its edges.

    Args:
        images: (B, 3, S, S) in [0, 1], canvases.
        poses: B of them.
        aspect: width by height of the images before they were squeezed to squares; (B,) or one for all.
    """
    matrix, centre = _geometry(poses, aspect, images)
    places = torch.einsum("bij,hwj->bhwi", matrix, _grid(images)) + centre[:, None, None]
    return grid_sample(images, places, mode="bilinear", padding_mode="zeros", align_corners=False)


def put_back(images: Tensor, poses: Poses, aspect: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Lay each image on the canvas where its pose says that it comes from: the inverse of `take`.

    Args:
        images: (B, 3, S, S) in [0, 1].
        poses: B of them.
        aspect: see `take`.

    Returns:
        Canvases (B, 3, S, S) in [0, 1], beyond the image filled with its edge, and what of them the images show,
        (B, 1, S, S) of 0 and 1.
    """
    matrix, centre = _geometry(poses, aspect, images)
    inverse = torch.linalg.inv(matrix)
    places = torch.einsum("bij,bhwj->bhwi", inverse, _grid(images)[None] - centre[:, None, None])
    canvases = grid_sample(images, places, mode="bilinear", padding_mode="border", align_corners=False)
    return canvases, (places.abs().amax(dim=-1) <= 1).to(images)[:, None]


def _geometry(poses: Poses, aspect: Tensor | float, images: Tensor) -> tuple[Tensor, Tensor]:
    """Matrix (B, 2, 2) and centre (B, 2): a view's coordinates in [-1, 1] to those of the canvas."""
    side, left, top, degrees = poses.values.to(images).unbind(1)
    wide = torch.as_tensor(aspect, device=images.device, dtype=images.dtype).expand(len(side))
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos(), angle.sin()
    # Turned in pixels, where sides are as long as they are, and squeezed to a square again.
    rows = [torch.stack([cos, -sin / wide], dim=1), torch.stack([sin * wide, cos], dim=1)]
    matrix = side[:, None, None] * torch.stack(rows, dim=1)
    return matrix, torch.stack([2 * left + side - 1, 2 * top + side - 1], dim=1)


def _grid(images: Tensor) -> Tensor:
    """Coordinates (H, W, 2) of pixel centres in [-1, 1], x first."""
    axes = [
        (torch.arange(length, device=images.device, dtype=images.dtype) + 0.5) * 2 / length - 1
        for length in images.shape[-2:]
    ]
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y], dim=-1)
