"""Measure hallucinations: samples that break the rules of the data, and scores that predict them.

Validators that know the rules of the data find hallucinations; FID does not follow them. Beside the fraction of
hallucinations, report coverage, since sharper samples can drop modes, and the distance to the nearest training sample,
since samples can be copies.
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
"""A sample belongs to a mode if it is within this many standard deviations of it."""


@dataclass(frozen=True)
class Validation:
    """The rules that samples break.

    Attributes:
        broken: for each rule, which samples break it, (B,) bool.
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
        """Fraction of samples that are hallucinated, including the validator's own error."""
        return float(self.hallucinated.double().mean())

    @property
    def fractions(self) -> dict[str, float]:
        """Fraction of samples that break each rule."""
        return {name: float(broken.double().mean()) for name, broken in self.broken.items()}


@dataclass(frozen=True)
class ModeCoverage:
    """How samples are spread over the modes of a mixture.

    Attributes:
        fractions: fractions of the valid samples near each mode, (K,), which sum to 1.
        covered: how many modes have a fraction of at least 1 / (5 K).
        imbalance: largest relative deviation of a fraction from 1 / K; 0 is uniform.
        spread: root mean square distance from the mode per dimension, in standard deviations of a mode. For real data
            in two dimensions it is 0.97, since the tails count as hallucinated; sharpened samples have less.
    """

    fractions: Tensor
    covered: int
    imbalance: float
    spread: float


def validate_mixture(samples: Tensor, mixture: GaussianMixture, *, radius: float = MODE_RADIUS) -> Validation:
    """Find samples that are farther than `radius` standard deviations from every mode.

    Args:
        samples: (B, D).
        mixture: the distribution of the data.
        radius: in standard deviations of a mode.

    Returns:
        One rule, "between modes". The reader error is exact: the tail of a chi-squared distribution with D degrees of
        freedom, which is 1.1 % for 3 standard deviations in two dimensions.
    """
    distances = torch.cdist(samples.double(), mixture.centres.to(samples.device)).min(1).values
    error = float(chi2.sf(radius**2, mixture.dimensions))
    # Written so that NaN, which compares false with everything, counts as hallucinated.
    return Validation({"between modes": ~(distances <= radius * mixture.std)}, error)


def mode_coverage(samples: Tensor, mixture: GaussianMixture, *, radius: float = MODE_RADIUS) -> ModeCoverage:
    """Measure how the valid samples are spread over the modes.

    Args:
        samples: (B, D).
        mixture: the distribution of the data.
        radius: see `validate_mixture`.

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
    """The distance of each sample to its nearest training sample.

    Args:
        samples: (B, ...).
        training: (N, ...).
        chunk: how many samples are compared at a time.

    Returns:
        (B,), the root mean square difference of the values of two samples.
    """
    x, y = samples.flatten(1).float(), training.flatten(1).float()
    nearest = [torch.cdist(part, y).min(1).values for part in x.split(chunk)]
    return torch.cat(nearest) / math.sqrt(x.shape[1])


def auroc(scores: ArrayLike, positive: ArrayLike) -> float:
    """The probability that a positive scores higher than a negative; ties count half (Mann and Whitney, 1947).

    Args:
        scores: (B,).
        positive: (B,) bool, such as which samples are hallucinated.

    Returns:
        A number in [0, 1]; not a number unless there are positives and negatives.

    Raises:
        ValueError: the shapes differ, or have more than one dimension.
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
    """Drop the samples with the highest scores.

    Args:
        scores: (B,), for example of a detector of hallucinations; NaN counts as highest.
        fraction: of the samples to drop, in [0, 1), rounded to whole samples; at least one sample is kept.

    Returns:
        Indices of the samples that are kept, ascending.

    Raises:
        ValueError: the fraction is out of range.
    """
    if not 0 <= fraction < 1:
        raise ValueError(f"expected a fraction to drop in [0, 1), got {fraction}")
    kept = max(len(scores) - round(fraction * len(scores)), 1)
    return scores.nan_to_num(math.inf).argsort(stable=True)[:kept].sort().values
