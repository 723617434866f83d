"""Read marks where they were written: in images that show all that was marked, at any size, mirrored or turned.

Such an image tells where its tiles begin, so there are few correlations to try, and a fainter mark can be told from
chance. What was compressed, filtered, resized or regenerated is read here.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from privgen.watermark.tile.pattern import FACES, HIGHEST, PLACES, Face, Place, count_below, mirrored_and_turned
from privgen.watermark.tile.poses import TILES, as_is
from privgen.watermark.tile.read import SHIFTS
from privgen.watermark.tile.spectrum import Spectrum, sample
from privgen.watermark.tile.wave import harmonics_on


Offset = tuple[int, int]
"""Of a shift, across and down, in steps of 1 / `SHIFTS` of a tile."""
EXACTLY: tuple[Offset, ...] = ((0, 0),)
IN_PLACE_BANDS = (8.0, 12.0, 16.0, HIGHEST)
"""Upper ends of the bands that are read here, in cycles a tile: more than elsewhere, because they cost little."""
NEARLY: tuple[Offset, ...] = tuple((across, down) for across in (-1, 0, 1) for down in (-1, 0, 1))


@torch.no_grad()
def correlate_in_place(
    spectrum: Spectrum, templates: Tensor, faces: Sequence[Face], offsets: Sequence[Offset]
) -> Tensor:
    """Correlate patterns with an image that shows all that was marked.

    Args:
        spectrum: of the image.
        templates: (K, 8, M) complex64, of K patterns with all their faces, on the device of the spectrum.
        faces: F faces of the tile.
        offsets: of the shifts that are tried, from each of those that are expected.

    Returns:
        (K, F) float32: the largest correlation over the shifts and the bands, in standard deviations.
    """
    device = spectrum.plane.device
    values = sample(spectrum, as_is(spectrum.work).to(device), count_below(IN_PLACE_BANDS[-1]))[0]
    across, down = harmonics_on(device)
    near = torch.tensor(offsets, dtype=torch.float32, device=device) / SHIFTS
    columns = []
    for face in faces:
        expected = [expected_shift(spectrum.work, face, place) for place in PLACES]
        shifts = (torch.tensor(expected, dtype=torch.float32, device=device)[:, None] + near).flatten(0, 1)
        moved = unshifted(values, shifts, across, down)
        of_face = templates[:, FACES.index(face)].conj()
        best = []
        for count in map(count_below, IN_PLACE_BANDS):
            norm = torch.linalg.vector_norm(values[:count]).clamp(min=1e-9)
            best.append((of_face[:, :count] @ moved[:, :count].T).real.amax(1) / norm)
        columns.append(torch.stack(best).amax(0))
    return torch.stack(columns, dim=1)


def unshifted(values: Tensor, shifts: Tensor, across: Tensor, down: Tensor) -> Tensor:
    """Return numbers at harmonics as they are if the tile begins elsewhere.

    Args:
        values: (m,) complex64.
        shifts: (S, 2) of the tile, across and down, in tiles.
        across: (m,) cycles across of the harmonics.
        down: (m,) cycles down.

    Returns:
        (S, m) complex64.
    """
    phase = -2 * math.pi * (shifts[:, :1] * across + shifts[:, 1:] * down)
    return values * torch.polar(torch.ones_like(phase), phase)


def expected_shift(size: tuple[int, int], face: Face, place: Place) -> tuple[float, float]:
    """Return where the central pixel of an image lies in the face of a tile, if the image shows all that was marked.

    Args:
        size: height and width of the image, in pixels.
        face: of the tile.
        place: of the tile in the image.

    Returns:
        Across and down, in tiles.
    """
    height, width = size
    tile = min(size) / TILES
    marked_width, marked_height = (height, width) if face[0] % 2 else (width, height)
    across, down = mirrored_and_turned(marked_width / 2 + place[0] * tile, marked_height / 2 + place[1] * tile, face)
    # The central pixel is not quite in the centre.
    return (across + width // 2 + 0.5 - width / 2) / tile, (down + height // 2 + 0.5 - height / 2) / tile
