"""A differentiable JPEG: baseline encoding and decoding as tensor operations, without the lossless entropy code.

Sources: ITU-T T.81 (DCT, quantisation, the example tables of annex K) and JFIF (colour space). Table scaling, chroma
sampling and rounding follow libjpeg, so that values come close to a real codec's. Rounding has a gradient of one
(straight-through), or is the cubic of Shin and Song, "JPEG-resistant Adversarial Images" (2017).
"""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from privgen.attacks.distortions.codecs import straight_through
from privgen.io.pixels import LUMA, pad_to_multiple


Subsampling: TypeAlias = Literal["4:2:0", "4:4:4"]
Rounding: TypeAlias = Literal["straight_through", "cubic"]

Rounder: TypeAlias = Callable[[Tensor], Tensor]

BLOCK = 8
"""Side of a block in pixels."""

LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
"""Quantisation of luma at quality 50 (T.81, table K.1)."""

CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    *[(99,) * 8] * 4,
)
"""Quantisation of chroma at quality 50 (T.81, table K.2)."""

RGB_TO_YCC = (
    LUMA,
    (-0.168735892, -0.331264108, 0.5),
    (0.5, -0.418687589, -0.081312411),
)
"""JFIF 1.02, without the shift of Cb and Cr by 128."""


def approximate_jpeg(
    images: Tensor,
    quality: float,
    *,
    subsampling: Subsampling = "4:2:0",
    rounding: Rounding = "straight_through",
) -> Tensor:
    """Return what a JPEG file of each image would decode to; differentiable.

    Args:
        images: (B, 3, H, W) in [0, 1], float32 or float64.
        quality: 1..100, as in libjpeg.
        subsampling: chroma at half resolution ("4:2:0") or at full ("4:4:4").
        rounding: "straight_through" rounds, and has a gradient of one there. "cubic" replaces rounding by a cubic,
            whose values differ by up to 0.125 and whose gradient is 0 at whole numbers.

    Returns:
        (B, 3, H, W) in [0, 1].

    Raises:
        ValueError: quality out of range.
    """
    height, width = images.shape[-2:]
    rounder = _round_straight_through if rounding == "straight_through" else _round_cubic
    ycc = rounder(_mix(rounder(images * 255), _matrix(images, RGB_TO_YCC)))  # Cb and Cr centred on 0
    luma, chroma = ycc[:, :1] - 128, ycc[:, 1:]
    luma_table, chroma_table = (quantisation_table(base, quality).to(images) for base in (LUMA_TABLE, CHROMA_TABLE))
    luma = _code(luma, luma_table, rounder)
    if subsampling == "4:2:0":
        chroma = rounder(F.avg_pool2d(pad_to_multiple(chroma, 2), 2))
    chroma = _code(chroma, chroma_table, rounder)
    if subsampling == "4:2:0":
        # libjpeg's "fancy" upsampling, 3/4 of the nearer and 1/4 of the farther sample, is the bilinear one.
        chroma = F.interpolate(chroma, scale_factor=2, mode="bilinear", align_corners=False)[..., :height, :width]
    decoded = torch.cat([luma + 128, rounder(chroma)], dim=1)
    rgb = rounder(_mix(decoded, torch.linalg.inv(_matrix(images, RGB_TO_YCC))))
    return rgb.clamp(0, 255) / 255


def quantisation_table(base: tuple[tuple[int, ...], ...], quality: float) -> Tensor:
    """Return an 8 x 8 table scaled to a quality of 1..100 as libjpeg does, float32.

    Raises:
        ValueError: quality out of range.
    """
    if not 1 <= quality <= 100:
        raise ValueError(f"expected a JPEG quality in [1, 100], got {quality:g}")
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    # libjpeg computes the percentage as a whole number.
    table = torch.tensor(base, dtype=torch.float32) * math.floor(scale)
    return ((table + 50) / 100).floor().clamp(1, 255)


@lru_cache(maxsize=1)
def _dct() -> Tensor:
    """Return the two-dimensional DCT-II of a flattened 8 x 8 block, orthonormal: (64, 64) float64 (T.81, A.3.3)."""
    k = torch.arange(BLOCK, dtype=torch.float64)
    line = torch.cos((2 * k[None, :] + 1) * k[:, None] * math.pi / (2 * BLOCK)) / 2
    line[0] /= math.sqrt(2)
    return torch.kron(line, line)


def _code(planes: Tensor, table: Tensor, rounder: Rounder) -> Tensor:
    """Quantise planes (B, C, H, W) around 0 in the DCT domain, block by block, and transform back to 8 bits."""
    height, width = planes.shape[-2:]
    padded = pad_to_multiple(planes, BLOCK)
    dct = _dct().to(padded)
    blocks = padded.unfold(2, BLOCK, BLOCK).unfold(3, BLOCK, BLOCK).flatten(-2)  # (B, C, H/8, W/8, 64)
    coefficients = blocks @ dct.T
    steps = table.flatten()
    pixels = rounder((rounder(coefficients / steps) * steps) @ dct)
    decoded = pixels.unflatten(-1, (BLOCK, BLOCK)).transpose(3, 4).reshape(padded.shape)
    return decoded[..., :height, :width].clamp(-128, 127)


def _mix(images: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("ij,bjhw->bihw", matrix, images)


def _matrix(like: Tensor, rows: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.tensor(rows, device=like.device, dtype=like.dtype)


def _round_straight_through(values: Tensor) -> Tensor:
    return straight_through(values, torch.round)


def _round_cubic(values: Tensor) -> Tensor:
    whole = values.detach().round()
    return whole + (values - whole) ** 3
