"""What attacks cost in the eyes of networks: ST-LPIPS and FD-MNv2, where their weights are installed."""

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
"""Images that a Frechet distance takes at least."""


class Perceived(TypedDict, total=False):
    """What a row notes of an image beside PSNR and SSIM; empty where nobody asked."""

    st_lpips: float | None
    features: str | None


def perceive(images: Tensor, before: Tensor, *, with_features: bool) -> list[Perceived]:
    """How networks see some images.

    Args:
        images: (B, 3, H, W) in [0, 1].
        before: the same images before the attack.
        with_features: whether `frechet` will need them.

    Returns:
        One entry an image; None for what is not installed, or too small.
    """
    distances: list[float | None] = [None] * len(images)
    if st_lpips_installed() and min(images.shape[-2:]) >= SMALLEST:
        with torch.no_grad():
            distances = st_lpips(images, before).tolist()
    features: list[str | None] = [None] * len(images)
    if with_features and mobilenet_installed():
        features = [_written(row) for row in mobilenet_features(images)]
    return [Perceived(st_lpips=a, features=b) for a, b in zip(distances, features, strict=True)]


def perception(rows: Sequence[Row], clean: Sequence[Row]) -> dict[str, Measured]:
    """Figures of one method under one attack, over the rows that have them.

    Args:
        rows: under the attack.
        clean: of the same method, without one.

    Returns:
        `st_lpips`, and `fd_mnv2` of the attacked marked images against the marked ones, without an interval. What
        no row has, or too few, is left out.
    """
    figures = {}
    distances = [row.st_lpips for row in rows if row.st_lpips is not None]
    if distances:
        figures["st_lpips"] = mean(distances)
    before = {row.image: row.features for row in clean if row.features is not None}
    pairs = [(row.features, before[row.image]) for row in rows if row.features is not None and row.image in before]
    if len(pairs) >= FEWEST:
        first, second = (torch.stack([_read(text) for text in texts]) for texts in zip(*pairs, strict=True))
        figures["fd_mnv2"] = Measured(frechet_distance(first, second), len(pairs), math.nan, math.nan)
    return figures


def _written(features: Tensor) -> str:
    """Features in half precision, which they are within the range of, as text."""
    return base64.b64encode(features.numpy().astype("<f2").tobytes()).decode()


def _read(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(base64.b64decode(text), "<f2").astype(np.float32))
