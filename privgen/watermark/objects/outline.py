"""The outline of what a key owns: a heat map, a box and a mask, from a first guess of the place."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, pad

from privgen.watermark.objects.windows import frequencies
from privgen.watermark.tile.pattern import HIGHEST, LOWEST


HEAT = 64
"""Pixels of a heat map along the short side of the image."""

_GRID = 32  # cells along the short side, of which boxes are made
_EDGE = 0.3  # a cell belongs to the box from this part of the expected mean on
_WARM = 0.4  # heat of the mask, over the mean of the box
_SMOOTH = 5  # heat-map pixels of the window, applied twice, in which evidence is averaged


@dataclass(frozen=True, eq=False)
class Outline:
    """Where the mark of a key is.

    Attributes:
        box: left, top, right and bottom edge, as fractions of the image's width and height.
        heat: (h, w) in [0, 1], how clearly the mark is there; `HEAT` pixels along the short side.
        mask: (h, w) of 0 and 1, where the heat in the box is at least 0.4 of its mean.
    """

    box: tuple[float, float, float, float]
    heat: Tensor
    mask: Tensor


def outline_of(evidence: Tensor, waves: Tensor, tile: float, start: tuple[int, int, int, int]) -> Outline:
    """Return the outline of a mark.

    At each pixel, the evidence is multiplied by the key's pattern. Where the mark is, the product has a mean above 0.
    The box is the one with the largest sum of products, less a fraction of the expected mean at each pixel.

    Args:
        evidence: (h, w), see `privgen.watermark.objects.windows.evidence_of`.
        waves: (h, w), the key's pattern as it lies in the image.
        tile: side of the tile in pixels of the evidence.
        start: left, top, right and bottom edge of a window that the mark fills at least in part, in pixels.
    """
    cycles = frequencies(evidence) * tile
    band = (cycles > LOWEST - 0.5) & (cycles < HIGHEST + 0.5)
    return outline_of_product(torch.fft.irfft2(torch.fft.rfft2(evidence) * band, s=evidence.shape) * waves, start)


def outline_of_product(product: Tensor, start: tuple[int, int, int, int]) -> Outline:
    """Return the outline of a mark from the product of evidence and pattern; see `outline_of`.

    Args:
        product: (h, w), whose mean is above 0 where the mark is.
        start: left, top, right and bottom edge of a window that the mark fills at least in part, in pixels.
    """
    height, width = product.shape
    left, top, right, bottom = start
    mean = max(float(product[top:bottom, left:right].mean()), 1e-9)
    cells = adaptive_avg_pool2d(product[None], _shape(height, width, _GRID))[0]
    left, top, right, bottom = _best_box(cells - _EDGE * mean)
    mean = max(float(cells[top:bottom, left:right].mean()), 1e-9)
    rows, columns = cells.shape
    box = (left / columns, top / rows, right / columns, bottom / rows)
    heat = adaptive_avg_pool2d(product[None], _shape(height, width, HEAT))[0]
    for _ in range(2):
        heat = _local(heat, _SMOOTH // 2)
    heat = (heat / mean).clamp(0, 1)
    inside = torch.zeros_like(heat)
    across, down = (slice(round(low * n), round(high * n)) for low, high, n in _spans(box, heat))
    inside[down, across] = 1
    return Outline(box, heat.cpu(), ((heat >= _WARM) * inside).cpu())


def _spans(box: tuple[float, float, float, float], plane: Tensor) -> list[tuple[float, float, int]]:
    """Edges of a box across and down, each with the number of pixels of a plane there."""
    return [(box[0], box[2], plane.shape[1]), (box[1], box[3], plane.shape[0])]


def _shape(height: int, width: int, short: int) -> tuple[int, int]:
    """Height and width of a smaller plane of the same shape, with so many pixels along the short side."""
    scale = min(1.0, short / min(height, width))
    return max(1, round(height * scale)), max(1, round(width * scale))


def _best_box(values: Tensor) -> tuple[int, int, int, int]:
    """Left, top, right and bottom edge of the box of a plane that has the largest sum."""
    rows, columns = values.shape
    sums = pad(values.cumsum(0).cumsum(1), (1, 0, 1, 0))
    strips = sums[None, :, :] - sums[:, None, :]  # (top, bottom, columns + 1)
    strips = strips.masked_fill(torch.ones(rows + 1, rows + 1, device=values.device).tril().bool()[..., None], 0)
    # The best pair of columns of a strip: the largest rise of its running sum.
    lowest, left = strips.cummin(2)
    rise, right = (strips - lowest).flatten(0, 1).max(1)
    strip = int(rise.argmax())
    top, bottom = divmod(strip, rows + 1)
    if float(rise[strip]) <= 0:
        return 0, 0, columns, rows
    end = int(right[strip])
    return int(left[top, bottom, end]), top, end, bottom


def _local(plane: Tensor, reach: int) -> Tensor:
    """The mean of a plane (h, w) over squares around each pixel."""
    padded = pad(plane[None, None], (reach,) * 4, mode="replicate")
    return avg_pool2d(padded, 2 * reach + 1, 1)[0, 0]
