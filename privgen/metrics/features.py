"""How near two sets of pictures are, by the features of a fixed network.

The Frechet distance of features is called FID only with one particular network, which is not used here: whoever
reports a figure names the network.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


COVERAGE_NEIGHBOURS = 5
"""k of the balls around real samples, as the paper has it."""


@dataclass(frozen=True)
class Projection:
    """Features along the principal axes of a reference, scaled so that their mean variance there is 1.

    Few numbers a picture let few hundred pictures estimate a covariance.

    Attributes:
        centre: (F,), the reference's mean.
        axes: (F, d), orthogonal columns of equal length.
    """

    centre: Tensor
    axes: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Project features (B, F); gives (B, d), float64."""
        return (features.double() - self.centre) @ self.axes


def fit_projection(features: Tensor, dimensions: int) -> Projection:
    """The projection on the axes along which a reference varies most.

    Args:
        features: (N, F) of the reference, at least two, not all equal.
        dimensions: d; more than there are axes gives all axes.

    Raises:
        ValueError: too few features, or all alike.
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
    """Squared Frechet distance of the normal distributions with the moments of two sets (Dowson and Landau, 1982).

    |m_1 - m_2|^2 + tr(S_1 + S_2 - 2 (S_1^1/2 S_2 S_1^1/2)^1/2). It is biased upwards by small sets: compare sets of
    equal size.

    Args:
        first: (N, d), at least two rows.
        second: (M, d), at least two rows.

    Returns:
        At least 0; not a number if a feature is none.

    Raises:
        ValueError: shapes that do not fit.
    """
    x, y = first.double(), second.double()
    if x.ndim != 2 or y.ndim != 2 or x.shape[1] != y.shape[1] or min(len(x), len(y)) < 2:
        raise ValueError(f"expected (N, d) and (M, d) of at least 2 rows, got {tuple(x.shape)} and {tuple(y.shape)}")
    if not (x.isfinite().all() and y.isfinite().all()):
        return math.nan
    # S = A^T A, and the roots of the eigenvalues of S_1 S_2 are the singular values of A_1 A_2^T: small for few rows.
    a, b = ((z - z.mean(0)) / math.sqrt(len(z) - 1) for z in (x, y))
    if len(x) > x.shape[1] or len(y) > y.shape[1]:
        a, b = (torch.linalg.qr(z).R for z in (a, b))  # the same A^T A of at most d rows
    cross = torch.linalg.svdvals(a @ b.T).sum()
    distance = (x.mean(0) - y.mean(0)).square().sum() + a.square().sum() + b.square().sum() - 2 * cross
    return max(float(distance), 0.0)


def coverage(real: Tensor, generated: Tensor, *, neighbours: int = COVERAGE_NEIGHBOURS) -> float:
    """Share of real samples that have a generated one nearer than their k-th real neighbour (arXiv 2002.09797).

    Args:
        real: (N, d), more than `neighbours`.
        generated: (M, d), at least one.
        neighbours: k.

    Returns:
        In [0, 1]; what is not a number covers nothing.

    Raises:
        ValueError: shapes that do not fit.
    """
    if real.ndim != 2 or generated.ndim != 2 or real.shape[1] != generated.shape[1] or len(generated) < 1:
        raise ValueError(f"expected (N, d) and (M, d), got {tuple(real.shape)} and {tuple(generated.shape)}")
    if not 1 <= neighbours < len(real):
        raise ValueError(f"expected more than {neighbours} real samples, got {len(real)}")
    x, y = real.double(), generated.double().nan_to_num(math.inf)
    # The nearest of the k + 1 is the sample itself.
    radius = torch.cdist(x, x).kthvalue(neighbours + 1, dim=1).values
    return float((torch.cdist(x, y).nan_to_num(math.inf).min(1).values <= radius).double().mean())
