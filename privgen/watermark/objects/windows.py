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
from torch.nn.functional import pad

from privgen.watermark.tile.pattern import HIGHEST
from privgen.watermark.tile.spectrum import check_image, whitened, working_copy
from privgen.watermark.tile.wave import harmonics_on, turns


CELLS = 64
"""About so many cells in an image."""
SIDES = (2, 3, 4, 5, 6, 8)
"""Sides of windows, in cells."""

_POWER = 0.6  # of the local power that divides the evidence; windows show more than the object, which 1 would suit
_FINEST = 0.47  # cycles a pixel of the finest wave that is read
_RINGS = 64  # in a cycle a pixel, in which the power of an image is made equal


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

    def __len__(self) -> int:
        return len(self.boxes)

    def coarse(self) -> Tensor:
        """Return which windows suffice to tell what is worth a closer look: about every third."""
        left, top, right, _ = self.boxes.unbind(1)
        side = right - left
        return ((left % 2 == 0) & (top % 2 == 0) & (side != 5)).nonzero()[:, 0]

    def pixels(self, window: int) -> tuple[int, int, int, int]:
        """Return left, top, right and bottom edge of a window in pixels."""
        left, top, right, bottom = self.boxes[window].tolist()
        return self.columns[left], self.rows[top], self.columns[right], self.rows[bottom]


def windows_of(size: tuple[int, int]) -> Windows:
    """Return the windows of an image of a height and width. They depend on nothing else."""
    height, width = size
    side = math.sqrt(height * width / CELLS)
    down, across = (min(length, max(1, round(length / side))) for length in size)
    boxes = {
        (left, top, left + wide, top + high)
        for wide, high in ((min(n, across), min(n, down)) for n in SIDES)
        for left in range(across - wide + 1)
        for top in range(down - high + 1)
    }
    boxes.add((0, 0, across, down))
    return Windows(_edges(height, down), _edges(width, across), torch.tensor(sorted(boxes)))


def _edges(length: int, count: int) -> tuple[int, ...]:
    return tuple(round(i * length / count) for i in range(count + 1))


def evidence_of(pixels: Tensor) -> Tensor:
    """Return what an image shows besides its content, of about the same power everywhere and at all frequencies.

    Args:
        pixels: (3, H, W) in [0, 1].

    Returns:
        (h, w) float32, of a copy of bounded size.

    Raises:
        ValueError: an image of another shape or type.
    """
    plane = whitened(working_copy(check_image(pixels)), _POWER)
    spectrum = torch.fft.rfft2(plane)
    ring = (_RINGS * frequencies(plane)).round().long()
    power = torch.bincount(ring.flatten(), spectrum.abs().square().flatten()) / torch.bincount(ring.flatten()).clamp(1)
    return torch.fft.irfft2(spectrum / (power.float()[ring] + 1e-20).sqrt(), s=plane.shape)


def frequencies(plane: Tensor) -> Tensor:
    """Return the frequencies, in cycles a pixel, of what `torch.fft.rfft2` makes of a plane (h, w)."""
    down = torch.fft.fftfreq(plane.shape[0], device=plane.device)
    across = torch.fft.rfftfreq(plane.shape[1], device=plane.device)
    return torch.hypot(*torch.meshgrid(down, across, indexing="ij"))


@torch.no_grad()
def window_evidence(evidence: Tensor, windows: Windows, tile: float) -> Tensor:
    """Return the evidence of windows at the harmonics of a tile, divided by its norm.

    Textures and compression may make a few harmonics loud. Before the norm is taken, each is limited to the root mean
    square of all. The limit depends on the image alone, so correlations with random keys stay normal.

    Args:
        evidence: (h, w), see `evidence_of`.
        windows: of the image.
        tile: side of the tile in pixels of the evidence.

    Returns:
        (W, M) complex64, each row of norm 1; the real part of its product with a conjugated template is a correlation
        in standard deviations. 0 for harmonics that are too fine.
    """
    cells = _cell_evidence(evidence, windows, tile)
    left, top, right, bottom = windows.boxes.to(evidence.device).unbind(1)
    sums = pad(cells.cumsum(0).cumsum(1), (0, 0, 1, 0, 1, 0))
    inside = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
    power = inside.abs().square()
    level = (power.sum(1, keepdim=True) / (power > 0).sum(1, keepdim=True).clamp(min=1)).sqrt()
    inside = inside * (level / power.sqrt().clamp(min=1e-12)).clamp(max=1)
    return inside / torch.linalg.vector_norm(inside, dim=1, keepdim=True).clamp(min=1e-12)


def whole_evidence(evidence: Tensor, tile: float) -> Tensor:
    """Return the evidence (M,) of all that is not 0 in a plane; see `window_evidence`."""
    height, width = evidence.shape
    return window_evidence(evidence, Windows((0, height), (0, width), torch.tensor([[0, 0, 1, 1]])), tile)[0]


def bit_logits(evidence: Tensor, noise: Tensor, owner: Tensor, n_bits: int) -> Tensor:
    """Return what evidence says of each bit, in standard deviations, positive for 1.

    Args:
        evidence: (M,) complex64, see `whole_evidence`.
        noise: (M,) of the key's pattern.
        owner: (M,) of the key's pattern.
        n_bits: number of bits.

    Returns:
        (n_bits,) float32.
    """
    zeros = torch.zeros(n_bits, dtype=torch.float32, device=evidence.device)
    signal = zeros.index_add(0, owner, (evidence * noise.conj()).real)
    return signal / zeros.index_add(0, owner, evidence.abs().square()).sqrt().clamp(min=1e-9)


def _cell_evidence(evidence: Tensor, windows: Windows, tile: float) -> Tensor:
    """The evidence (rows, columns, M) complex64 of the cells, of about the same power at all frequencies."""
    device, top = evidence.device, int(HIGHEST)
    height, width = evidence.shape
    horizontal = turns(0, width, 0, top, tile, device).conj()
    vertical = turns(0, height, -top, top, tile, device).conj()
    plane = evidence.to(torch.complex64)
    columns = zip(windows.columns[:-1], windows.columns[1:], strict=True)
    across = torch.stack([plane[:, a:b] @ horizontal[a:b] for a, b in columns], dim=1)  # (h, columns, 25)
    rows = zip(windows.rows[:-1], windows.rows[1:], strict=True)
    both = torch.stack([vertical[a:b].T @ across[a:b].flatten(1) for a, b in rows])
    both = both.unflatten(2, (-1, top + 1))  # (rows, 49, columns, 25)
    x, y = harmonics_on(device)
    values = both[:, y + top, :, x].permute(1, 2, 0)
    cycles = torch.hypot(x.float(), y.float())
    values = values * (cycles < _FINEST * tile)
    ring, power = cycles.round().long(), values.abs().square().mean((0, 1))
    sums = torch.zeros(int(HIGHEST) + 1, device=device).index_add(0, ring, power)
    counts = torch.zeros_like(sums).index_add(0, ring, (cycles < _FINEST * tile).float())
    return values / ((sums / counts.clamp(min=1))[ring] + 1e-20).sqrt()
