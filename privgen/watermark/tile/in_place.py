"""Read marks where they were written: in images that show all that was marked, at any size, mirrored or turned.

Such an image tells where its tiles begin, so there are few correlations to try, and a fainter mark can be told from
chance. What was compressed, filtered, resized or regenerated is read here.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from privgen.watermark.tile.pattern import Face, Pattern, mirrored_and_turned
from privgen.watermark.tile.poses import TILES, as_is
from privgen.watermark.tile.read import BANDS, SHIFTS, count_below
from privgen.watermark.tile.spectrum import Spectrum, sample
from privgen.watermark.tile.wave import harmonics_on


Offset = tuple[int, int]
"""Of a shift, across and down, in steps of 1 / `SHIFTS` of a tile."""
EXACTLY: tuple[Offset, ...] = ((0, 0),)
NEARLY: tuple[Offset, ...] = tuple((across, down) for across in (-1, 0, 1) for down in (-1, 0, 1))


@torch.no_grad()
def correlate_in_place(
    spectrum: Spectrum, patterns: Sequence[Pattern], faces: Sequence[Face], offsets: Sequence[Offset]
) -> Tensor:
    """Correlate patterns with an image that shows all that was marked.

    Args:
        spectrum: of the image.
        patterns: K patterns.
        faces: F faces of the tile.
        offsets: of the shifts that are tried, from the one that is expected.

    Returns:
        (K, F) float32, on the CPU: the largest correlation over the shifts and the bands, in standard deviations.
    """
    device = spectrum.plane.device
    values = sample(spectrum, as_is(spectrum.work).to(device), count_below(BANDS[-1]))[0]
    power = torch.view_as_real(values).square().sum(-1).cumsum(0)
    across, down = harmonics_on(device)
    near = torch.tensor(offsets, device=device) / SHIFTS
    best = torch.zeros(len(patterns), len(faces))
    for f, face in enumerate(faces):
        shifts = near + torch.tensor(expected_shift(spectrum.work, face), device=device)
        phase = -2 * math.pi * (shifts[:, :1] * across + shifts[:, 1:] * down)
        moved = values * torch.polar(torch.ones_like(phase), phase)
        for k, pattern in enumerate(patterns):
            sums = (moved * pattern.face(*face).template.conj().to(device)).real.cumsum(1)
            last = [count_below(band) - 1 for band in BANDS]
            best[k, f] = (sums[:, last] / power[last].sqrt().clamp(min=1e-9)).max()
    return best


def expected_shift(size: tuple[int, int], face: Face) -> tuple[float, float]:
    """Return where the central pixel of an image lies in the face of a tile, if the image shows all that was marked.

    Args:
        size: height and width of the image, in pixels.
        face: of the tile.

    Returns:
        Across and down, in tiles.
    """
    height, width = size
    tile = min(size) / TILES
    marked_width, marked_height = (height, width) if face[0] % 2 else (width, height)
    across, down = mirrored_and_turned(marked_width / 2, marked_height / 2, face)
    # The central pixel is not quite in the centre.
    return (across + width // 2 + 0.5 - width / 2) / tile, (down + height // 2 + 0.5 - height / 2) / tile
