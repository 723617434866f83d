"""Draw images of at most one triangle, one square and one pentagon.

These are like the simple shapes of Aithal et al., arXiv 2406.09358: each kind of shape has its own third of the image,
and is there with a probability of one half.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw


SHAPES = {"triangle": 3, "square": 4, "pentagon": 5}
"""Kinds of shapes from left to right, with their number of corners."""
SIZE = 64
"""Side of an image in pixels."""
RADIUS = 9.0
"""Distance of the corners from the centre of a shape, in pixels."""
_FINE = 8  # shapes are drawn this many times larger, for smooth edges


@dataclass(frozen=True)
class PlacedShape:
    """A shape and its place.

    Attributes:
        kind: key in `SHAPES`.
        x: of the centre, in pixels.
        y: of the centre, in pixels.
    """

    kind: str
    x: float
    y: float


def sample_shapes(seed: int, index: int) -> tuple[PlacedShape, ...]:
    """Draw which shapes an image shows, and where; there may be none.

    Args:
        seed: of a set of images.
        index: number of the image in the set.
    """
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    third = SIZE / len(SHAPES)
    placed = []
    for column, kind in enumerate(SHAPES):
        there, x, y = rng.random(3)
        if there < 0.5:
            free = third / 2 - RADIUS
            placed.append(
                PlacedShape(kind, (column + 0.5) * third + free * (2 * x - 1), RADIUS + y * (SIZE - 2 * RADIUS))
            )
    return tuple(placed)


def draw_shapes(placed: tuple[PlacedShape, ...]) -> NDArray[np.float32]:
    """Draw white shapes with smooth edges on black, (1, 64, 64) in [0, 1]."""
    image = Image.new("L", (SIZE * _FINE, SIZE * _FINE), 0)
    pen = ImageDraw.Draw(image)
    for shape in placed:
        pen.polygon(_corners(shape), fill=255)
    small = image.resize((SIZE, SIZE), Image.Resampling.BOX)
    return np.asarray(small, dtype=np.float32)[None] / np.float32(255)


def _corners(shape: PlacedShape) -> list[tuple[float, float]]:
    n = SHAPES[shape.kind]
    # The lowest side is horizontal.
    angles = [2 * math.pi * (i + 0.5) / n + math.pi / 2 for i in range(n)]
    corners = [(shape.x + RADIUS * math.cos(angle), shape.y + RADIUS * math.sin(angle)) for angle in angles]
    return [(_FINE * x, _FINE * y) for x, y in corners]
