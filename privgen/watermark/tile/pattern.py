"""The pattern of a key: complex noise on the harmonics of a square tile that repeats over the image.

A tile is a torus. Its pattern is a sum of waves that fit into it a whole number of times in both directions, the
harmonics. The key's secret draws the amplitude and phase of each harmonic, a complex normal number. So the patterns of
two keys are nearly orthogonal, and for a fixed image the correlation with a random key is exactly normal (see
`privgen.watermark.tile.p_values`). Each harmonic carries one bit: the sign of the bit multiplies its wave. The key
also says which harmonics belong to which bit; bits share each ring of frequencies equally.
"""

import hashlib
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privgen.errors import UsageError
from privgen.watermark.hkdf import hkdf_sha256
from privgen.watermark.key import Key


VERSION = 1
"""Of the format of marks: of the harmonics, of how a key draws its pattern, and of where the pattern begins. A change
of any of these needs a new version, which gives every key other patterns, and a reader of both."""
N_BITS = 48
"""Number of message bits, if nothing else is asked for."""
FEWEST_BITS, MOST_BITS = 8, 64
N_PLACES = 16
"""Number of places where a tile may begin."""
LOWEST, HIGHEST = 2.0, 24.0
"""Band of the mark, in cycles a tile."""

Face = tuple[int, bool]
"""How a tile lies in an image: by how many quarters it is turned counter-clockwise, and whether it was mirrored, left
to right, before it was turned."""
FACES: tuple[Face, ...] = tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4))

Place = tuple[float, float]
"""Where the upper left corner of an image lies in a tile: across and down, in tiles."""
PLACES: tuple[Place, ...] = tuple((1.5026 * i**2 % 1, 1.8403 * i**3 % 1) for i in range(N_PLACES))
"""Places of the tile. Each image has one of them, so that the mean of many marked images shows none of them well. No
wave of the band is nearly the same in all of them.

This protects from those who only average. Who knows the method can find out which images have the same place."""

_LABEL = f"privgen/watermark/v{VERSION}/tile".encode()


@cache
def harmonics() -> NDArray[np.int64]:
    """Return the harmonics of the band, in one half of the plane, because waves of real images come in pairs.

    Returns:
        (M, 2) whole numbers of cycles a tile, across and down, in ascending order of frequency.
    """
    top = int(HIGHEST)
    down, across = np.mgrid[-top : top + 1, 0 : top + 1]
    waves = np.stack([across.ravel(), down.ravel()], axis=1)
    cycles = np.hypot(*waves.T)
    half = (waves[:, 0] > 0) | (waves[:, 1] > 0)
    waves = waves[half & (cycles >= LOWEST) & (cycles <= HIGHEST)]
    order = np.lexsort((waves[:, 1], waves[:, 0], (waves**2).sum(axis=1)))
    waves = waves[order]
    waves.setflags(write=False)
    return waves


@cache
def count_below(cycles: float) -> int:
    """Return how many of the `harmonics()` have less than so many cycles a tile, or just as many."""
    return int((np.hypot(*harmonics().T) <= cycles).sum())


@dataclass(frozen=True, eq=False, repr=False)
class Pattern:
    """The pattern of a key.

    Attributes:
        name: of the key.
        key_id: the key's public id.
        bits: (n_bits,) int64 of 0 and 1, the message.
        noise: (M,) complex64, one number for each of the `harmonics()`, without the message: independent, complex
            normal, with real and imaginary parts of variance 1.
        owner: (M,) int64, the bit that each harmonic carries.
        written: (M,) complex64, what is written if a payload goes with the message; None is the template alone.
    """

    name: str
    key_id: str
    bits: Tensor
    noise: Tensor
    owner: Tensor
    written: Tensor | None = None

    def __repr__(self) -> str:
        return f"Pattern({self.name!r}, key_id={self.key_id!r}, n_bits={len(self.bits)})"

    @property
    def template(self) -> Tensor:
        """The noise times the message, (M,) complex64: what is looked for in an image."""
        return self.noise * (2 * self.bits - 1)[self.owner]

    @cached_property
    def templates(self) -> Tensor:
        """The templates of all `FACES`, (8, M) complex64."""
        return torch.stack([self.face(*face).template for face in FACES])

    def face(self, turns: int, mirrored: bool) -> "Pattern":
        """Return the pattern as an image has it that was mirrored, left to right, and then turned by quarters.

        A square lattice of harmonics is its own mirror image and its own quarter turn. So the numbers only change
        places, and an image has to be sampled once for all eight faces of a tile.

        Args:
            turns: quarter turns, counter-clockwise, 0..3.
            mirrored: whether it was mirrored.
        """
        source, conjugate = _moves(turns, mirrored)
        noise = self.noise[source]
        noise = torch.where(conjugate, noise.conj(), noise)
        return replace(self, noise=noise, owner=self.owner[source], written=None)


def faces_of(templates: Tensor) -> Tensor:
    """Return templates (..., M) as all `FACES` have them, (..., 8, M)."""
    turned = []
    for face in FACES:
        source, conjugate = (moves.to(templates.device) for moves in _moves(*face))
        moved = templates[..., source]
        turned.append(torch.where(conjugate, moved.conj(), moved))
    return torch.stack(turned, dim=-2)


def without_face(values: Tensor, face: Face) -> Tensor:
    """Return numbers (..., M) at the harmonics of a face as numbers at the harmonics of the tile itself.

    Args:
        values: at all harmonics, or at those below some band.
        face: of the tile.
    """
    # Faces move no harmonic to another frequency, so a band keeps its harmonics.
    source, conjugate = (moves[: values.shape[-1]].to(values.device) for moves in _moves(*face))
    moved = torch.empty_like(values)
    moved[..., source] = torch.where(conjugate, values.conj(), values)
    return moved


def mirrored_and_turned(across: float, down: float, face: Face) -> tuple[float, float]:
    """Return a vector as a face has it; y points down."""
    turns, mirrored = face
    across = -across if mirrored else across
    for _ in range(turns):
        across, down = down, -across
    return across, down


def undone(across: float, down: float, face: Face) -> tuple[float, float]:
    """Return the vector that `mirrored_and_turned` turns into this one."""
    turns, mirrored = face
    across, down = mirrored_and_turned(across, down, (-turns % 4, False))
    return (-across if mirrored else across), down


@cache
def _moves(turns: int, mirrored: bool) -> tuple[Tensor, Tensor]:
    """For each harmonic of a face, the harmonic of the tile that comes there, and whether as its conjugate."""
    places = {tuple(wave): i for i, wave in enumerate(harmonics().tolist())}
    source, conjugate = (torch.empty(len(places), dtype=kind, device="cpu") for kind in (torch.int64, torch.bool))
    for (across, down), i in places.items():
        x, y = mirrored_and_turned(across, down, (turns, mirrored))
        place = places.get((x, y))
        target = places[-x, -y] if place is None else place
        source[target], conjugate[target] = i, place is None
    return source, conjugate


def pattern_of(key: Key, n_bits: int = N_BITS) -> Pattern:
    """Return the pattern of a key.

    Args:
        key: its secret draws the pattern and the message.
        n_bits: length of the message, 8..64.

    Raises:
        UsageError: a length out of its range.
    """
    return drawn_pattern(key, _LABEL, len(harmonics()), n_bits)


def drawn_pattern(key: Key, label: bytes, count: int, n_bits: int) -> Pattern:
    """Draw a pattern of so many waves from a key's secret.

    Args:
        key: its secret draws the pattern and the message.
        label: of the kind of marks; each kind has patterns of its own.
        count: number of waves.
        n_bits: length of the message, 8..64.

    Raises:
        UsageError: a length out of its range.
    """
    check_bits(n_bits)
    seed = hkdf_sha256(key.secret, info=label, length=32)
    # Box and Muller's transform of a stream of 64-bit words, so that no library's generator can change the pattern.
    words = np.frombuffer(hashlib.shake_256(seed).digest(3 * 8 * count), "<u8").reshape(3, count)
    radius_of, angle_of = ((words[:2] >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    noise = np.sqrt(-2 * np.log(radius_of)) * np.exp(2j * np.pi * angle_of)
    owner = np.empty(count, np.int64)
    for start in range(0, count, n_bits):  # neighbours in frequency go to different bits
        ring = words[2, start : start + n_bits]
        owner[start : start + n_bits] = np.argsort(np.argsort(ring, kind="stable"), kind="stable")
    return Pattern(
        key.name,
        key.key_id,
        torch.tensor(key.bits(n_bits), device="cpu"),
        torch.from_numpy(noise.astype(np.complex64)),
        torch.from_numpy(owner),
    )


def check_bits(n_bits: int) -> None:
    """Check the length of a message.

    Raises:
        UsageError: it is not in 8..64.
    """
    if not FEWEST_BITS <= n_bits <= MOST_BITS:
        raise UsageError(f"expected {FEWEST_BITS} to {MOST_BITS} bits, got {n_bits}")
