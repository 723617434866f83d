"""Which samples could not be data, and whether a score tells.

Measured with validators that know the rules of the data, not with FID, which does not follow hallucination. Beside
the fraction of hallucinations belong coverage (sharper samples can drop modes) and the distance to the nearest training
sample (they can copy).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.stats import chi2, rankdata
from torch import Tensor

from privgen.data.toys import GaussianMixture


MODE_RADIUS = 3.0
"""Standard deviations around a mode within which a sample belongs to it."""


@dataclass(frozen=True)
class Validation:
    """What a validator found.

    Attributes:
        broken: for each rule which samples break it, (B,) bool.
        reader_error: fraction of real data that the validator takes for hallucinated.
    """

    broken: Mapping[str, Tensor]
    reader_error: float

    @property
    def hallucinated(self) -> Tensor:
        """Which samples break a rule, (B,) bool."""
        return torch.stack(list(self.broken.values())).any(0)

    @property
    def fraction(self) -> float:
        """Fraction of samples that are hallucinated, the reader's own error included."""
        return float(self.hallucinated.double().mean())

    @property
    def fractions(self) -> dict[str, float]:
        """Fraction of samples that break each rule."""
        return {name: float(broken.double().mean()) for name, broken in self.broken.items()}


@dataclass(frozen=True)
class ModeCoverage:
    """How samples are spread over the modes of a mixture.

    Attributes:
        fractions: of the valid samples near each mode, (K,), adding to 1.
        covered: modes whose fraction is at least a fifth of 1 / K.
        imbalance: largest relative deviation of a fraction from 1 / K; 0 is uniform.
        spread: root of the mean squared deviation of a number from its mode, in standard deviations of a mode. Without
            the tails that were taken for hallucinated it is 0.97 for real data in two dimensions; less is sharpened.
    """

    fractions: Tensor
    covered: int
    imbalance: float
    spread: float


def validate_mixture(samples: Tensor, mixture: GaussianMixture, *, radius: float = MODE_RADIUS) -> Validation:
    """Samples farther than `radius` standard deviations from every mode are hallucinated.

    Args:
        samples: (B, D).
        mixture: the data.
        radius: in standard deviations of a mode.

    Returns:
        One rule, "between modes". The reader's error is exact: the tail of a chi-squared law with D degrees of
        freedom, 1.1 % for 3 standard deviations in two dimensions.
    """
    distances = torch.cdist(samples.double(), mixture.centres.to(samples.device)).min(1).values
    error = float(chi2.sf(radius**2, mixture.dimensions))
    # What is not a number is near nothing.
    return Validation({"between modes": ~(distances <= radius * mixture.std)}, error)


def mode_coverage(samples: Tensor, mixture: GaussianMixture, *, radius: float = MODE_RADIUS) -> ModeCoverage:
    """How the valid samples are spread over the modes; arguments as for `validate_mixture`.

    Raises:
        ValueError: no sample is valid.
    """
    valid = samples[~validate_mixture(samples, mixture, radius=radius).hallucinated]
    if len(valid) == 0:
        raise ValueError("expected at least one valid sample, got none")
    k = len(mixture.means)
    nearest = torch.cdist(valid.double(), mixture.centres.to(valid.device)).min(1)
    fractions = torch.bincount(nearest.indices, minlength=k).double() / len(valid)
    spread = float((nearest.values.square().mean() / mixture.dimensions).sqrt()) / mixture.std
    return ModeCoverage(fractions, int((fractions * k >= 0.2).sum()), float((fractions * k - 1).abs().max()), spread)


def nearest_training_distance(samples: Tensor, training: Tensor, *, chunk: int = 1024) -> Tensor:
    """Distance of each sample to the training sample nearest to it.

    Args:
        samples: (B, ...).
        training: (N, ...), the same shape but for N.
        chunk: samples at a time.

    Returns:
        (B,): root of the mean squared difference per number.
    """
    x, y = samples.flatten(1).float(), training.flatten(1).float()
    nearest = [torch.cdist(part, y).min(1).values for part in x.split(chunk)]
    return torch.cat(nearest) / math.sqrt(x.shape[1])


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """Probability that a positive has a higher score than a negative; ties count half (Mann and Whitney, 1947).

    Args:
        scores: (B,).
        positive: (B,) bool, for example which samples are hallucinated.

    Returns:
        In [0, 1]; not a number unless there are both kinds.
    """
    x, labels = np.asarray(scores, dtype=np.float64), np.asarray(positive, dtype=bool)
    if x.shape != labels.shape or x.ndim != 1:
        raise ValueError(f"expected as many scores as labels, got {x.shape} and {labels.shape}")
    n = int(labels.sum())
    if n in (0, labels.size):
        return math.nan
    ranks = float(rankdata(x)[labels].sum())
    return (ranks - n * (n + 1) / 2) / (n * (labels.size - n))


def keep_best(scores: Tensor, fraction: float) -> Tensor:
    """Which samples are left when the worst fraction is dropped.

    Args:
        scores: (B,), high is bad, such as `AmplifiedScheduler.running_variance`.
        fraction: to drop, in [0, 1); rounded to whole samples, and at least one is kept.

    Returns:
        Indices in ascending order.

    Raises:
        ValueError: the fraction is out of range.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"expected a fraction to drop in [0, 1), got {fraction}")
    kept = max(len(scores) - round(fraction * len(scores)), 1)
    return scores.nan_to_num(math.inf).argsort(stable=True)[:kept].sort().values
