"""What attacks cost by networks that compare images: ST-LPIPS and FD-MNv2, where their weights are installed."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor

from privgen.evaluation.intervals import Measured, mean
from privgen.evaluation.robustness.log import Row
from privgen.metrics.features import frechet_distance
from privgen.metrics.mobilenet import mobilenet_features, mobilenet_installed
from privgen.metrics.st_lpips import SMALLEST, st_lpips, st_lpips_installed


FEWEST = 64
"""The fewest images that a Frechet distance is computed from."""


class Perceived(TypedDict, total=False):
    """What a row holds beside PSNR and SSIM; empty if networks do not compare images."""

    st_lpips: float | None
    features: str | None


def perceive(images: Tensor, before: Tensor, *, with_features: bool) -> list[Perceived]:
    """Compare images by networks.

    Args:
        images: (B, 3, H, W) in [0, 1].
        before: the same images before the attack.
        with_features: whether to keep features of the images, for a Frechet distance.

    Returns:
        One entry for each image, in which None stands for a network that is not installed, or for which the images are
        too small.
    """
    distances: list[float | None] = [None] * len(images)
    if st_lpips_installed() and min(images.shape[-2:]) >= SMALLEST:
        with torch.no_grad():
            distances = st_lpips(images, before).tolist()
    features: list[str | None] = [None] * len(images)
    if with_features and mobilenet_installed():
        features = [encode_features(row) for row in mobilenet_features(images)]
    return [Perceived(st_lpips=a, features=b) for a, b in zip(distances, features, strict=True)]


def perception(rows: Sequence[Row], clean: Sequence[Row]) -> dict[str, Measured]:
    """Figures of one method under one attack, over the rows that have them.

    Args:
        rows: under the attack.
        clean: rows of the same method without an attack.

    Returns:
        `st_lpips`, and `fd_mnv2` of the attacked marked images against the marked ones, which has no interval. A
        figure that no row has, or too few, is left out.
    """
    figures = {}
    distances = [row.st_lpips for row in rows if row.st_lpips is not None]
    if distances:
        figures["st_lpips"] = mean(distances)
    before = {row.image: row.features for row in clean if row.features is not None}
    pairs = [(row.features, before[row.image]) for row in rows if row.features is not None and row.image in before]
    if len(pairs) >= FEWEST:
        first, second = (torch.stack([decode_features(text) for text in texts]) for texts in zip(*pairs, strict=True))
        figures["fd_mnv2"] = Measured(frechet_distance(first, second), len(pairs), math.nan, math.nan)
    return figures


def encode_features(features: Tensor) -> str:
    """The features of one image as text, in half precision; they lie within its range.

    Args:
        features: (D,).
    """
    return base64.b64encode(features.numpy().astype("<f2").tobytes()).decode()


def decode_features(text: str) -> Tensor:
    """The reverse of `encode_features`: (D,) float32."""
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32))
