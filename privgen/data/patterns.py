"""Canvas-fixed patterns that scenes name in their captions.

Two vocabularies. *Patterns* are plainly visible and lie behind the objects ("fine diagonal stripes").
*Textures* are faint, lie over the whole picture as the threads of a cloth do, and are named by
materials ("linen and silk texture"). Both are functions of the canvas, not of the objects, so a text encoder that
knows their words can write a small, image-independent signal.
"""

import hashlib
import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray


Array = NDArray[np.float32]

KINDS = ("horizontal stripes", "vertical stripes", "diagonal stripes", "dots", "checks", "waves")
PERIODS = {"fine": 1 / 16, "coarse": 1 / 6}
"""Length of one period as a share of the canvas side."""

PATTERNS = tuple(f"{scale} {kind}" for kind in KINDS for scale in PERIODS)

TEXTURES = tuple(
    """linen silk velvet cotton denim wool felt satin lace tweed canvas burlap suede leather corduroy flannel
    chiffon damask brocade muslin gauze tulle jersey fleece taffeta organza poplin calico gingham paisley plaid
    tartan parchment papyrus vellum cardboard cork bamboo oak maple walnut birch pine marble granite slate
    sandstone limestone basalt quartz pearl ivory copper bronze brass pewter tin chalk clay plaster stucco adobe
    rattan wicker""".split()
)

THREADS = range(11, 15)
"""Threads of a texture's weave across the canvas, in cycles: fine, yet within what a factor-8 autoencoder keeps."""
SLANTS = range(-4, 5)
"""Cycles by which threads lean over the canvas."""


def _grid(size: int) -> tuple[Array, Array]:
    """Pixel centres as (x, y) in [0, 1), each of shape (size, size)."""
    line = ((np.arange(size) + 0.5) / size).astype(np.float32)
    x, y = np.meshgrid(line, line)
    return x.astype(np.float32), y.astype(np.float32)


def _unit(field: Array) -> Array:
    field = field - field.mean()
    return (field / np.sqrt(np.mean(field**2))).astype(np.float32)


@lru_cache(maxsize=64)
def pattern(name: str, size: int = 128) -> Array:
    """A visible pattern as a zero-mean field of unit RMS.

    Args:
        name: one of `PATTERNS`.
        size: side of the canvas in pixels.

    Returns:
        Array of shape (size, size).

    Raises:
        ValueError: if the name is unknown.
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
    """The plane waves of one thread direction, as (threads, slant, phase in turns), in a fixed shuffled order."""
    waves = [(n, slant, phase) for n in THREADS for slant in SLANTS for phase in (0.0, 0.25)]
    return tuple(sorted(waves, key=lambda wave: hashlib.sha256(f"{direction} {wave}".encode()).digest()))


@lru_cache(maxsize=256)
def texture(name: str, size: int = 128) -> Array:
    """A faint texture as a zero-mean field of unit RMS.

    Each is a weave: one plane wave across and one down that no other texture uses, so all textures are orthogonal.

    Args:
        name: one of `TEXTURES`.
        size: side of the canvas in pixels.

    Returns:
        Array of shape (size, size).

    Raises:
        ValueError: if the name is unknown.
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
