"""Make waves of a tile: from complex amplitudes of its harmonics to pixels, at any size, exactly."""

import math
from functools import cache

import torch
from torch import Tensor

from privgen.watermark.tile.pattern import HIGHEST, harmonics


_GRID = 128  # samples along a side of a tile; more than five for each cycle of the highest harmonic
_FINEST = 0.47  # cycles a pixel of the finest wave that is drawn


@cache
def harmonics_on(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the `harmonics()` as two tensors (M,) int64: cycles across and cycles down."""
    waves = torch.tensor(harmonics(), device=device)
    return waves[:, 0], waves[:, 1]


def grid_of(amplitudes: Tensor, size: int) -> Tensor:
    """Evaluate sums of waves on square grids that span one tile.

    Args:
        amplitudes: (..., m) complex, one for each of the first m of the `harmonics()`.
        size: points along a side of the grid, an even number, more than two for each cycle of the highest harmonic.

    Returns:
        (..., size, size) real: at row i and column j the real part of the sum over the harmonics of amplitude *
        exp(2 pi i (across * j + down * i) / size).
    """
    return torch.fft.irfft2(half_plane(amplitudes, size), s=(size, size))


def half_plane(amplitudes: Tensor, size: int) -> Tensor:
    """Lay amplitudes out, and scale them, so that the inverse real transform makes the grid of `grid_of` from them.

    Args:
        amplitudes: (..., m) complex, see `grid_of`.
        size: points along a side of the grid.

    Returns:
        (..., size, size // 2 + 1) complex.
    """
    across = harmonics_on(amplitudes.device)[0][: amplitudes.shape[-1]]
    # A complex-to-real transform counts the columns of the half plane twice, but not the first one.
    return laid_out(torch.where(across == 0, 2, 1) * amplitudes * (size**2 / 2), size)


def laid_out(amplitudes: Tensor, size: int) -> Tensor:
    """Return amplitudes (..., m) at their places in a half plane (..., size, size // 2 + 1), as they are."""
    across, down = (wave[: amplitudes.shape[-1]] for wave in harmonics_on(amplitudes.device))
    half = amplitudes.new_zeros(*amplitudes.shape[:-1], size * (size // 2 + 1))
    half[..., down % size * (size // 2 + 1) + across] = amplitudes
    return half.unflatten(-1, (size, size // 2 + 1))


def amplitudes_of(grid: Tensor) -> Tensor:
    """Return the amplitudes (M,) of the waves that `grid_of` turns into a grid; what is not in the band is dropped."""
    across, down = harmonics_on(grid.device)
    size = grid.shape[-1]
    return torch.fft.rfft2(grid)[down % size, across] * (2 / size**2)


def limit_peaks(amplitudes: Tensor, peak: float, rounds: int) -> Tensor:
    """Lower the peaks of a tile, which the eye sees first, and keep it within its band.

    Args:
        amplitudes: (M,) complex64.
        peak: largest value, in standard deviations, to which the tile is clipped in each round.
        rounds: clipping and dropping what left the band are repeated.

    Returns:
        (M,) complex64 of a tile of standard deviation 1.
    """
    for _ in range(rounds):
        tile = grid_of(amplitudes, _GRID)
        spread = tile.std()
        amplitudes = amplitudes_of(tile.clamp(-peak * spread, peak * spread))
    return amplitudes / grid_of(amplitudes, _GRID).std()


def sheet(amplitudes: Tensor, rows: range, width: int, tile: float) -> Tensor:
    """Evaluate the repeated tile at the pixels of some rows of an image.

    Args:
        amplitudes: (M,) complex64.
        rows: rows of the image.
        width: of the image, in pixels.
        tile: side of the tile in pixels. Waves shorter than about two pixels are left out.

    Returns:
        (len(rows), width) float32.
    """
    across, down = harmonics_on(amplitudes.device)
    top = int(HIGHEST)
    table = amplitudes.new_zeros(2 * top + 1, top + 1)
    kept = torch.hypot(across.float(), down.float()) < _FINEST * tile
    table[(down + top)[kept], across[kept]] = amplitudes[kept]
    vertical = turns(rows.start, rows.stop, -top, top, tile, amplitudes.device)
    horizontal = turns(0, width, 0, top, tile, amplitudes.device)
    mixed = vertical @ table
    return mixed.real @ horizontal.real.T - mixed.imag @ horizontal.imag.T


def turns(start: int, stop: int, low: int, high: int, tile: float, device: torch.device) -> Tensor:
    """Return waves of low to high cycles a tile, at the centres of pixels.

    Args:
        start: first pixel.
        stop: the pixel behind the last one.
        low: cycles of the first wave.
        high: cycles of the last wave.
        tile: side of the tile in pixels.
        device: of the result.

    Returns:
        (stop - start, high - low + 1) complex64 of absolute value 1.
    """
    place = (torch.arange(start, stop, device="cpu", dtype=torch.float64) + 0.5) / tile  # not all devices have float64
    phase = 2 * math.pi * (place % 1)[:, None] * torch.arange(low, high + 1, device="cpu")
    return torch.polar(torch.ones_like(phase), phase).to(device, torch.complex64)
