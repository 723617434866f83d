"""How many times fewer steps a training needs than another, from their curves of quality."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from privgen.evaluation.intervals import Measured, over_seeds


SPEEDUP = 1.3
"""From this ratio on, with an interval above 1, a setting counts as faster."""

Curve = Sequence[tuple[float, float]]
"""(steps, distance) pairs, steps ascending and positive, distance the lower the better."""


def first_reach(curve: Curve, target: float) -> float:
    """Steps after which a curve is first at or below a target.

    Between checkpoints the curve is a straight line over the logarithm of the steps.

    Args:
        curve: at least one checkpoint.
        target: distance.

    Returns:
        Steps; those of the first checkpoint if it is that good already; infinity if no checkpoint is.

    Raises:
        ValueError: no checkpoints, or steps that do not ascend.
    """
    steps = [step for step, _ in curve]
    if not steps or steps[0] <= 0 or any(a >= b for a, b in pairwise(steps)):
        raise ValueError(f"expected checkpoints at ascending positive steps, got {steps}")
    before: tuple[float, float] | None = None
    for step, distance in curve:
        if distance <= target:
            # What was not a number before lies above every target.
            if before is None or not math.isfinite(before[1]):
                return step
            share = (before[1] - target) / (before[1] - distance)
            return before[0] * (step / before[0]) ** share
        before = (step, distance)
    return math.inf


def steps_ratio(vanilla: Curve, ours: Curve) -> float:
    """Vanilla's steps over ours to vanilla's final quality.

    Both are the steps at which a curve first reaches it, so that a curve against itself gives 1 also if it wavers.
    Where ours never reaches it, both are compared at the best that ours reaches, which gives a ratio of at most 1.

    Args:
        vanilla: as `Curve`.
        ours: as `Curve`.

    Returns:
        A positive ratio, not a number if a curve has no finite point to compare at.
    """
    target = vanilla[-1][1]
    if not first_reach(ours, target) < math.inf:
        target = min((distance for _, distance in ours if math.isfinite(distance)), default=math.nan)
    ratio = first_reach(vanilla, target) / first_reach(ours, target)
    return ratio if math.isfinite(ratio) else math.nan


def ratio_over_seeds(ratios: Sequence[float]) -> Measured:
    """The geometric mean with its 95 % interval, Student's t of the logarithms; values that are none are left out."""
    logs = over_seeds([math.log(ratio) if ratio > 0 else math.nan for ratio in ratios])
    return replace(logs, value=math.exp(logs.value), low=math.exp(logs.low), high=math.exp(logs.high))


def is_speedup(ratio: Measured) -> bool:
    """Whether a ratio is at least `SPEEDUP` with an interval above 1."""
    return ratio.value >= SPEEDUP and ratio.low > 1


def is_worse(ratio: Measured) -> bool:
    """Whether the interval of a ratio lies below 1."""
    return ratio.high < 1
