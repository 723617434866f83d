"""Crops and rotations: which part of the marked canvas an image shows, and how to put it back there.

A mark is fixed to the canvas, so a reader must know which part of the canvas an image shows. `Poses` describe that
part. `take` cuts it out of the canvas; `put_back` puts the image back, and tells which pixels of the canvas the image
shows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample


@dataclass(frozen=True, eq=False)
class Poses:
    """The window of the canvas that each of B images shows. Lengths are fractions of the canvas's side.

    Attributes:
        values: (B, 4) float32: the window's side, left edge and upper edge, and the angle in degrees by which it is
            rotated counter-clockwise about its centre.
    """

    values: Tensor

    @classmethod
    def of(cls, *, side: float = 1.0, left: float = 0.0, top: float = 0.0, degrees: float = 0.0) -> "Poses":
        """Return one pose."""
        return cls(torch.tensor([[side, left, top, degrees]]))

    def __len__(self) -> int:
        return len(self.values)

    def expand(self, count: int) -> "Poses":
        """Repeat a single pose for `count` images."""
        return Poses(self.values.expand(count, -1))


def take(images: Tensor, poses: Poses, aspect: Tensor | float = 1.0) -> Tensor:
    """Cut a window out of each canvas and resize it to the canvas's size. Beyond the canvas it is black.

    Args:
        images: (B, 3, S, S) in [0, 1], the canvases.
        poses: B poses.
        aspect: width divided by height of the images before they were resized to squares; (B,) or one for all.
    """
    matrix, centre = _geometry(poses, aspect, images)
    places = torch.einsum("bij,hwj->bhwi", matrix, _grid(images)) + centre[:, None, None]
    return grid_sample(images, places, mode="bilinear", padding_mode="zeros", align_corners=False)


def put_back(images: Tensor, poses: Poses, aspect: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """Put each image back to its window of the canvas: the inverse of `take`.

    Args:
        images: (B, 3, S, S) in [0, 1].
        poses: B poses.
        aspect: see `take`.

    Returns:
        Canvases (B, 3, S, S) in [0, 1], where the image's edge is repeated beyond the image; and masks (B, 1, S, S), 1
        for the pixels of the canvas that the image shows and 0 for others.
    """
    matrix, centre = _geometry(poses, aspect, images)
    inverse = torch.linalg.inv(matrix)
    places = torch.einsum("bij,bhwj->bhwi", inverse, _grid(images)[None] - centre[:, None, None])
    canvases = grid_sample(images, places, mode="bilinear", padding_mode="border", align_corners=False)
    return canvases, (places.abs().amax(dim=-1) <= 1).to(images)[:, None]


def _geometry(poses: Poses, aspect: Tensor | float, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return matrices (B, 2, 2) and centres (B, 2) that map an image's coordinates in [-1, 1] to the canvas's."""
    side, left, top, degrees = poses.values.to(images).unbind(1)
    wide = torch.as_tensor(aspect, device=images.device, dtype=images.dtype).expand(len(side))
    angle = torch.deg2rad(degrees)
    cos, sin = angle.cos(), angle.sin()
    # Rotate in the proportions that the image had, not in those of the square.
    rows = [torch.stack([cos, -sin / wide], dim=1), torch.stack([sin * wide, cos], dim=1)]
    matrix = side[:, None, None] * torch.stack(rows, dim=1)
    return matrix, torch.stack([2 * left + side - 1, 2 * top + side - 1], dim=1)


def _grid(images: Tensor) -> Tensor:
    """Return the coordinates (H, W, 2) of pixel centres in [-1, 1], x first."""
    axes = [
        (torch.arange(length, device=images.device, dtype=images.dtype) + 0.5) * 2 / length - 1
        for length in images.shape[-2:]
    ]
    y, x = torch.meshgrid(*axes, indexing="ij")
    return torch.stack([x, y], dim=-1)
