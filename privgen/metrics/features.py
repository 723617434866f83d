"""Compare two sets of images by the features of a fixed network.

The Frechet distance of features is called FID only for one particular network, which is not used here. So name the
network beside every figure that you report.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


COVERAGE_NEIGHBOURS = 5
"""Number of neighbours that set the radius around a real sample, as in the paper."""


@dataclass(frozen=True)
class Projection:
    """A projection on the principal axes of a reference, scaled so that the reference has a mean variance of 1.

    With few features per image, a few hundred images are enough to estimate a covariance.

    Attributes:
        centre: mean of the reference, (F,).
        axes: orthogonal columns of equal length, (F, d).
    """

    centre: Tensor
    axes: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Project features (B, F) to (B, d), float64."""
        return (features.double() - self.centre) @ self.axes


def fit_projection(features: Tensor, dimensions: int) -> Projection:
    """Fit the projection on the axes along which a reference varies most.

    Args:
        features: of the reference, (N, F), at least two that differ.
        dimensions: number of axes, d; at most F are used.

    Raises:
        ValueError: there are too few features, or all are equal.
    """
    x = features.double()
    if x.ndim != 2 or len(x) < 2 or dimensions < 1:
        raise ValueError(f"expected features (N, F) of at least 2 and 1 dimension, got {tuple(x.shape)}, {dimensions}")
    centre = x.mean(0)
    values, vectors = torch.linalg.eigh(torch.cov(x.T))
    order = values.argsort(descending=True)[:dimensions]
    variance = float(values[order].mean())
    if not variance > 0:
        raise ValueError("expected features that vary, got equal ones")
    return Projection(centre, vectors[:, order] / math.sqrt(variance))


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """The squared Frechet distance of two sets, as normal distributions (Dowson and Landau, 1982).

    It is |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1^1/2 S_2 S_1^1/2)^1/2) of the means m and covariances S. Small sets bias
    it upwards, so compare sets of equal size.

    Args:
        first: (N, d), at least two rows.
        second: (M, d), at least two rows.

    Returns:
        A number of at least 0; not a number if a feature is NaN or infinite.

    Raises:
        ValueError: the shapes do not fit.
    """
    x, y = first.double(), second.double()
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"expected (N, d) and (M, d) of at least 2 rows, got {tuple(x.shape)} and {tuple(y.shape)}")
    if not (x.isfinite().all() and y.isfinite().all()):
        return math.nan
    # With S = A^T A, the roots of the eigenvalues of S_1 S_2 are the singular values of A_1 A_2^T, a small matrix if
    # there are few rows.
    a, b = ((z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y))
    if len(x) > x.shape[1] or len(y) > y.shape[1]:
        a, b = (torch.linalg.qr(z).R for z in (a, b))  # A^T A stays the same, with at most d rows
    cross = torch.linalg.svdvals(a @ b.T).sum()
    distance = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * cross
    return max(float(distance), 0.0)


def coverage(real: Tensor, generated: Tensor, *, neighbours: int = COVERAGE_NEIGHBOURS) -> float:
    """The fraction of real samples with a generated sample nearer than their k-th real neighbour (arXiv 2002.09797).

    Args:
        real: (N, d), more rows than `neighbours`.
        generated: (M, d), at least one row; rows with NaN cover nothing.
        neighbours: k.

    Returns:
        A number in [0, 1].

    Raises:
        ValueError: the shapes do not fit.
    """
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1] or len(generated) < 1:
        raise ValueError(f"expected (N, d) and (M, d), got {tuple(real.shape)} and {tuple(generated.shape)}")
    if not 1 <= neighbours < len(real):
        raise ValueError(f"expected more than {neighbours} real samples, got {len(real)}")
    x, y = real.double(), generated.double().nan_to_num(math.inf)
    # The nearest of k + 1 neighbours is the sample itself.
    radius = torch.cdist(x, x).kthvalue(neighbours + 1, dim=1).values
    return float((torch.cdist(x, y).nan_to_num(math.inf).min(1).values <= radius).double().mean())
