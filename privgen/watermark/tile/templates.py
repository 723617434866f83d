"""The patterns of many keys as one matrix, and which of the keys are promising in an image.

For ten thousand keys, the matrix takes 71 MB, and a rough copy of its lowest quarter 9 MB. The faces of the patterns,
eight times as much, are made of those keys only that are looked at.
"""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from privgen.watermark.tile.in_place import expected_shift, unshifted
from privgen.watermark.tile.pattern import FACES, PLACES, Face, Pattern, count_below, faces_of, harmonics, without_face
from privgen.watermark.tile.poses import as_is
from privgen.watermark.tile.spectrum import Spectrum, sample
from privgen.watermark.tile.wave import harmonics_on


MANY = 200
"""With more keys than that, only the promising ones are looked at, unless there is a search."""

ROUGH = torch.bfloat16 if torch.backends.cpu.get_cpu_capability().startswith("AVX512") else torch.float32
"""Type of the numbers that say which keys are promising. Processors without AVX-512 are slow with bfloat16."""

UPRIGHT_KEYS, TURNED_KEYS = 16, 2
"""How many of many keys are promising."""

_UPRIGHT_BAND, _TURNED_BAND = 12.0, 8.0  # cycles a tile; a quarter and a tenth of the harmonics are below


class Templates:
    """The templates of K keys.

    Args:
        patterns: of the keys. An iterator is read one pattern at a time.
        count: number of the keys.

    Attributes:
        each: (K, M) complex64, see `privgen.watermark.tile.pattern.Pattern.template`.
    """

    def __init__(self, patterns: Iterable[Pattern], count: int) -> None:
        self.each = torch.empty(count, len(harmonics()), dtype=torch.complex64, device="cpu")
        for row, pattern in zip(self.each, patterns, strict=True):
            row[:] = pattern.template
        rough = self.each[:, : count_below(_UPRIGHT_BAND)] if count > MANY else self.each[:0]
        self._rough = torch.view_as_real(rough).flatten(1).to(ROUGH)

    def __len__(self) -> int:
        return len(self.each)

    def faces(self, chosen: Sequence[int], device: torch.device) -> Tensor:
        """Return the templates of all faces of some keys, (k, 8, M) complex64."""
        return faces_of(self.each[list(chosen)]).to(device)

    def upright(self, spectrum: Spectrum) -> list[int]:
        """Return the keys whose marks are likeliest in an image that shows all that was marked.

        They are `UPRIGHT_KEYS`. A quarter of the harmonics tells them, so a faint mark may be missed.

        Args:
            spectrum: of the image.
        """
        return self._best(spectrum, FACES[:1], _UPRIGHT_BAND, UPRIGHT_KEYS)

    def turned(self, spectrum: Spectrum) -> list[int]:
        """Return the keys whose marks are likeliest if such an image was mirrored or turned by quarters.

        They are `TURNED_KEYS`. A tenth of the harmonics tells them, so a mark has to be clear.

        Args:
            spectrum: of the image.
        """
        return self._best(spectrum, FACES[1:], _TURNED_BAND, TURNED_KEYS)

    @torch.no_grad()
    def _best(self, spectrum: Spectrum, faces: Sequence[Face], band: float, most: int) -> list[int]:
        """The keys, at most so many, that correlate best with an image in some faces."""
        device, count = spectrum.plane.device, count_below(band)
        self._rough = self._rough.to(device)
        values = sample(spectrum, as_is(spectrum.work).to(device), count)[0]
        across, down = (numbers[:count] for numbers in harmonics_on(device))
        shifts = [expected_shift(spectrum.work, face, place) for face in faces for place in PLACES]
        moved = unshifted(values, torch.tensor(shifts, dtype=torch.float32, device=device), across, down)
        rows = [without_face(some, face) for some, face in zip(moved.split(len(PLACES)), faces, strict=True)]
        evidence = torch.view_as_real(torch.cat(rows)).flatten(1)
        evidence = evidence / torch.linalg.vector_norm(values).clamp(min=1e-9)
        z = (evidence.to(ROUGH) @ self._rough[:, : 2 * count].T).amax(0)
        return z.float().topk(min(most, len(z))).indices.tolist()
