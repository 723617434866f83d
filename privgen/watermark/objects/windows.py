"""What the windows of an image say of any key: their evidence at the harmonics of a tile that lies where it was put.

The image is cut into cells. A cell's evidence is a short Fourier sum at the harmonics of the tile, and a window's is
the sum of that of its cells. So all windows cost little more than the cells, and the correlations of all keys with all
windows are one product. For a fixed image and a random key, each of them is exactly normal (see
`privgen.watermark.tile.p_values`).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from privgen.watermark.objects.place import START
from privgen.watermark.tile.pattern import HIGHEST
from privgen.watermark.tile.wave import harmonics_on


CELLS = 64
"""About so many cells in an image."""
SIDES = (2, 3, 4, 5, 6, 8)
"""Sides of windows, in cells."""

_FINEST = 0.47  # cycles a pixel of the finest wave that is read


@dataclass(frozen=True, eq=False, repr=False)
class Windows:
    """Windows of an image.

    Attributes:
        rows: edges of the rows of cells, in pixels, in ascending order.
        columns: edges of the columns of cells.
        boxes: (W, 4) int64, left, top, right and bottom edge of each window, in cells.
    """

    rows: tuple[int, ...]
    columns: tuple[int, ...]
    boxes: Tensor

    def box(self, window: int) -> tuple[float, float, float, float]:
        """Return left, top, right and bottom edge of a window, as fractions of the image's width and height."""
        left, top, right, bottom = self.boxes[window].tolist()
        width, height = self.columns[-1], self.rows[-1]
        edges = (self.columns[left] / width, self.rows[top] / height)
        return (*edges, self.columns[right] / width, self.rows[bottom] / height)


def windows_of(size: tuple[int, int]) -> Windows:
    """Return the windows of an image of a height and width. They depend on nothing else."""
    height, width = size
    side = math.sqrt(height * width / CELLS)
    down, across = (max(1, round(length / side)) for length in size)
    boxes = {
        (left, top, left + wide, top + high)
        for n in SIDES
        for wide, high in [(min(n, across), min(n, down))]
        for left in range(across - wide + 1)
        for top in range(down - high + 1)
    } | {(0, 0, across, down)}
    rows, columns = (
        tuple(round(i * length / count) for i in range(count + 1))
        for length, count in ((height, down), (width, across))
    )
    return Windows(rows, columns, torch.tensor(sorted(boxes)))


@torch.no_grad()
def window_evidence(evidence: Tensor, windows: Windows, tile: float) -> Tensor:
    """Return the evidence of windows at the harmonics of a tile, divided by its norm.

    Args:
        evidence: (h, w) of an image, see `privgen.watermark.tile.spectrum.whitened`.
        windows: of the image.
        tile: side of the tile in pixels.

    Returns:
        (W, M) complex64, each row of norm 1; the real part of its product with a conjugated template is a correlation
        in standard deviations. 0 for harmonics that are too fine.
    """
    cells = cell_evidence(evidence, windows, tile)
    left, top, right, bottom = windows.boxes.to(evidence.device).unbind(1)
    sums = torch.nn.functional.pad(cells.cumsum(0).cumsum(1), (0, 0, 1, 0, 1, 0))
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    return inside / torch.linalg.vector_norm(inside, dim=1, keepdim=True).clamp(min=1e-12)


def cell_evidence(evidence: Tensor, windows: Windows, tile: float) -> Tensor:
    """Return the evidence (rows, columns, M) complex64 of the cells; see `window_evidence`."""
    device, top = evidence.device, int(HIGHEST)
    height, width = evidence.shape
    horizontal = _turns(width, tile, START[0], 0, top, device)
    vertical = _turns(height, tile, START[1], -top, top, device)
    plane = evidence.to(torch.complex64)
    columns = zip(windows.columns[:-1], windows.columns[1:], strict=True)
    across = torch.stack([plane[:, a:b] @ horizontal[a:b] for a, b in columns], dim=1)  # (h, columns, 25)
    rows = zip(windows.rows[:-1], windows.rows[1:], strict=True)
    both = torch.stack([vertical[a:b].T @ across[a:b].flatten(1) for a, b in rows])
    both = both.unflatten(2, (-1, top + 1))  # (rows, 49, columns, 25)
    x, y = harmonics_on(device)
    values = both[:, y + top, :, x].permute(1, 2, 0)
    values = values * (torch.hypot(x.float(), y.float()) < _FINEST * tile)
    level = values.abs().square().mean((0, 1))
    return values / (_smooth_level(level) + 1e-20).sqrt()


def _smooth_level(level: Tensor) -> Tensor:
    """Smooth the power (M,) of the harmonics over rings of equal frequency."""
    x, y = harmonics_on(level.device)
    ring = torch.hypot(x.float(), y.float()).round().long()
    sums = torch.zeros(int(ring.max()) + 1, device=level.device).index_add(0, ring, level)
    counts = torch.zeros_like(sums).index_add(0, ring, (level > 0).float())
    return (sums / counts.clamp(min=1))[ring]


def _turns(length: int, tile: float, start: float, low: int, high: int, device: torch.device) -> Tensor:
    """Unit numbers (length, high - low + 1) that undo waves of low to high cycles a tile at the centres of pixels."""
    place = (torch.arange(length, device=device, dtype=torch.float64) + 0.5) / tile + start
    phase = -2 * math.pi * (place % 1)[:, None] * torch.arange(low, high + 1, device=device)
    return torch.polar(torch.ones_like(phase), phase).to(torch.complex64)
