"""Patterns and textures that captions of scenes name.

*Patterns* are plainly visible and lie behind the objects ("fine diagonal stripes"). *Textures* are faint, lie over the
whole picture like the threads of a cloth, and have the names of materials ("linen and silk texture"). Both depend on
their place on the canvas and not on the objects. So a text encoder that knows their words can write a small signal
that is the same in every image.
"""

import hashlib
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


Array = NDArray[np.float32]

KINDS = ("horizontal stripes", "vertical stripes", "diagonal stripes", "dots", "checks", "waves")
PERIODS = {"fine": 1 / 16, "coarse": 1 / 6}
"""Length of one period, as a fraction of the side of the canvas."""

PATTERNS = tuple(f"{scale} {kind}" for kind in KINDS for scale in PERIODS)

TEXTURES = tuple(
    """linen silk velvet cotton denim wool felt satin lace tweed canvas burlap suede leather corduroy flannel
    chiffon damask brocade muslin gauze tulle jersey fleece taffeta organza poplin calico gingham paisley plaid
    tartan parchment papyrus vellum cardboard cork bamboo oak maple walnut birch pine marble granite slate
    sandstone limestone basalt quartz pearl ivory copper bronze brass pewter tin chalk clay plaster stucco adobe
    rattan wicker""".split()
)

THREADS = range(11, 15)
"""Numbers of threads across the canvas: as fine as mini's autoencoder still keeps them."""
SLANTS = range(-4, 5)
"""How far a thread leans over from one edge to the other, in widths of a thread."""


def _grid(size: int) -> tuple[Array, Array]:
    """Coordinates x and y of the pixel centres, in [0, 1), each of shape (size, size)."""
    line = ((np.arange(size) + 0.5) / size).astype(np.float32)
    x, y = np.meshgrid(line, line)
    return x.astype(np.float32), y.astype(np.float32)


def _unit(field: Array) -> Array:
    field = field - field.mean()
    return (field / np.sqrt(np.mean(field**2))).astype(np.float32)


@lru_cache(maxsize=64)
def pattern(name: str, size: int) -> Array:
    """Draw a visible pattern, a field of mean 0 and RMS 1.

    Args:
        name: one of `PATTERNS`.
        size: side of the canvas in pixels.

    Returns:
        Array of shape (size, size).

    Raises:
        ValueError: the name is unknown.
    """
    if name not in PATTERNS:
        raise ValueError(f"expected one of {', '.join(PATTERNS)}, got {name!r}")
    scale, kind = name.split(" ", 1)
    x, y = _grid(size)
    w = np.float32(2 * math.pi / PERIODS[scale])
    fields = {
        "horizontal stripes": lambda: np.cos(w * y),
        "vertical stripes": lambda: np.cos(w * x),
        "diagonal stripes": lambda: np.cos(w * (x + y) / math.sqrt(2)),
        "dots": lambda: np.maximum(np.cos(w * x) * np.cos(w * y), 0.0) ** 2,
        "checks": lambda: np.tanh(3 * np.cos(w * x) * np.cos(w * y)),
        "waves": lambda: np.cos(w * y + 1.5 * np.sin(w * x / 2)),
    }
    return _unit(fields[kind]())


@lru_cache(maxsize=2)
def _threads(direction: str) -> tuple[tuple[int, int, float], ...]:
    """All plane waves of one thread direction as (threads, slant, phase in turns), in a fixed shuffled order."""
    waves = [(n, slant, phase) for n in THREADS for slant in SLANTS for phase in (0.0, 0.25)]
    return tuple(sorted(waves, key=lambda wave: hashlib.sha256(f"{direction} {wave}".encode()).digest()))


@lru_cache(maxsize=256)
def texture(name: str, size: int) -> Array:
    """Draw a texture, a field of mean 0 and RMS 1.

    It is a weave of two plane waves, one across and one down. No two textures share a wave, so they are orthogonal.

    Args:
        name: one of `TEXTURES`.
        size: side of the canvas in pixels.

    Returns:
        Array of shape (size, size).

    Raises:
        ValueError: the name is unknown.
    """
    if name not in TEXTURES:
        raise ValueError(f"expected a texture such as {TEXTURES[0]!r}, got {name!r}")
    index = TEXTURES.index(name)
    x, y = _grid(size)
    n, slant, phase = _threads("warp")[index]
    warp = np.cos(2 * math.pi * (n * x + slant * y + phase))
    n, slant, phase = _threads("weft")[index]
    weft = np.cos(2 * math.pi * (slant * x + n * y + phase))
    return _unit((warp + weft).astype(np.float32))
