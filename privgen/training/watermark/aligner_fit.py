"""Measures what an aligner's encoder makes of marks and of the content of images."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from privgen.models.aligner import Aligner, seen_cells
from privgen.models.mappers import signs
from privgen.watermark.write.linear_code import nearest_covariance, ridged


RIDGE = 0.03
"""Fraction of the mean variance that is added to the variance of each latent value, for content not measured."""

_UNSEEN = 1e4  # variance of latent values that no view shows
_FEW = 20.0  # ridge of the patterns: where not many more views show a value, they say little about it
_TOLD = 256  # number of views that set the temperature
_TEMPERATURES = [2 ** (k / 4) for k in range(-8, 29)]


@dataclass(frozen=True, eq=False)
class View:
    """Parts of B marked images, put back to their places on the canvas.

    Attributes:
        marked: (B, 3, S, S) in [0, 1], canvases with the parts.
        opposite: the same, with marks of the opposite bits.
        seen: (B, 1, S, S) of 0 and 1, which pixels of the canvases the parts cover.
        bits: (B, n_bits) of 0 and 1, the messages.
    """

    marked: Tensor
    opposite: Tensor
    seen: Tensor
    bits: Tensor


@torch.no_grad()
def fit_aligner(aligner: Aligner, views: Iterable[View]) -> None:
    """Set the patterns, the mean, the covariance and the temperature of an aligner, in place.

    Half the difference of an image and its opposite is the mark alone. Half their sum is the content alone.

    Args:
        aligner: to fit. Its encoder stays as it is.
        views: some thousand images, for a good covariance. Latent values that none of them shows are never read.
    """
    kept = []
    for view in views:
        one, other = aligner.encode(view.marked), aligner.encode(view.opposite)
        side = one.shape[2], one.shape[3]
        kept.append((one.flatten(1), other.flatten(1), seen_cells(view.seen, side).float(), signs(view.bits)))
    one, other, cells, bits = (torch.cat(parts).cpu() for parts in zip(*kept, strict=True))
    mean, covariance = measure_content((one + other) / 2, cells, side)
    aligner.patterns.copy_(measure_patterns((one - other) / 2, cells, bits))
    aligner.mean.copy_(mean)
    aligner.covariance.copy_(covariance)
    aligner.log_temperature.zero_()
    aligner.forget()
    latents = one[:_TOLD].unflatten(1, (-1, *side)).to(aligner.mean)
    logits = aligner.read_parts(latents[:, None], cells[:_TOLD].to(latents))[:, 0]
    right = (bits[:_TOLD] > 0).to(logits)
    losses = {t: float(binary_cross_entropy_with_logits(logits / t, right)) for t in _TEMPERATURES}
    aligner.log_temperature.fill_(math.log(min(losses, key=losses.__getitem__)))


def measure_patterns(marks: Tensor, cells: Tensor, bits: Tensor) -> Tensor:
    """Find the patterns of bits that explain marks best, by least squares for each cell.

    Args:
        marks: (N, d), latent values in the order of channels, then of cells.
        cells: (N, h w) of 0 and 1, which cells were seen.
        bits: (N, n_bits) of -1 and 1.

    Returns:
        (n_bits, d).
    """
    n_bits, places = bits.shape[1], cells.shape[1]
    shown = marks.unflatten(1, (-1, places)) * cells[:, None]
    heard = torch.einsum("vb,vcs->sbc", bits, shown)
    among = torch.stack([(bits * part[:, None]).T @ bits for part in cells.T])
    patterns = torch.linalg.solve(among + _FEW * torch.eye(n_bits), heard)
    return patterns.permute(1, 2, 0).flatten(1)


def measure_content(latents: Tensor, cells: Tensor, side: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Measure mean and covariance of latents that were seen in part.

    The covariance is the mean of the measured one and of one that depends on distances only. The latter holds for
    other images too.

    Args:
        latents: (N, d), in the order of channels, then of cells.
        cells: (N, h w) of 0 and 1, which cells were seen.
        side: h and w.

    Returns:
        Mean (d,) and covariance (d, d), positive definite.
    """
    channels = latents.shape[1] // cells.shape[1]
    shown = cells.repeat(1, channels)
    counts = shown.sum(dim=0)
    known = counts.clamp(min=1)
    mean = (latents * shown).sum(dim=0) / known
    seen = (latents - mean) * shown
    deviation = (seen.square().sum(dim=0) / known).sqrt().clamp(min=1e-6)
    seen = seen / deviation
    pairs = cells.T @ cells
    products = (seen.T @ seen).unflatten(1, (channels, -1)).unflatten(0, (channels, -1))
    correlation = (products / pairs.clamp(min=1)[:, None] + _by_distance(products, pairs, side)) / 2
    covariance = correlation.flatten(2).flatten(0, 1) * deviation[:, None] * deviation
    covariance = ridged(nearest_covariance(covariance), RIDGE)
    covariance.diagonal()[counts == 0] = _UNSEEN
    return mean, covariance


def _by_distance(products: Tensor, pairs: Tensor, side: tuple[int, int]) -> Tensor:
    """Average products of values over all pairs of cells that have the same distance and direction.

    Args:
        products: (C, h w, C, h w), sums over the views that show both cells.
        pairs: (h w, h w), the numbers of these views.
        side: h and w.

    Returns:
        Means, (C, h w, C, h w).
    """
    (height, width), channels = side, len(products)
    y, x = (axis.flatten() for axis in torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij"))
    lags = (y[:, None] - y + height - 1) * (2 * width - 1) + x[:, None] - x + width - 1
    number = (2 * height - 1) * (2 * width - 1)
    total = torch.zeros(channels, channels, number).index_add(2, lags.flatten(), products.transpose(1, 2).flatten(2))
    count = torch.zeros(number).index_add(0, lags.flatten(), pairs.flatten())
    return (total / count.clamp(min=1))[:, :, lags].transpose(1, 2)
