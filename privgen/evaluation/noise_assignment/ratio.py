"""How many times fewer steps one training needs than another, from their curves of quality."""

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from privgen.evaluation.intervals import Measured, over_seeds


SPEEDUP = 1.3
"""A method is faster if its ratio is at least this, with an interval above 1."""

Curve = Sequence[tuple[float, float]]
"""Pairs (steps, distance) with ascending positive steps; lower distances are better."""


def first_reach(curve: Curve, target: float) -> float:
    """The number of steps after which a curve first reaches a target.

    Between two checkpoints, the distance is interpolated linearly over the logarithm of the steps.

    Args:
        curve: at least one checkpoint.
        target: a distance.

    Returns:
        The steps; those of the first checkpoint if it already reaches the target, infinity if no checkpoint does.

    Raises:
        ValueError: there are no checkpoints, or their steps do not ascend.
    """
    steps = [step for step, _ in curve]
    if not steps or steps[0] <= 0 or any(a >= b for a, b in pairwise(steps)):
        raise ValueError(f"expected checkpoints at ascending positive steps, got {steps}")
    before: tuple[float, float] | None = None
    for step, distance in curve:
        if distance <= target:
            # A distance that is not a number lies above every target.
            if before is None or not math.isfinite(before[1]):
                return step
            weight = (before[1] - target) / (before[1] - distance)
            return before[0] * (step / before[0]) ** weight
        before = (step, distance)
    return math.inf


def steps_ratio(vanilla: Curve, ours: Curve) -> float:
    """Vanilla's steps over ours, both to vanilla's final quality.

    Both count the steps until a curve first reaches that quality, so that a curve compared with itself gives 1 even if
    it goes up and down. If ours never reaches it, both are compared at the best quality that ours reaches, which gives
    a ratio of at most 1.

    Args:
        vanilla: curve without assignment.
        ours: curve with assignment.

    Returns:
        A positive ratio; not a number if a curve has no finite point to compare at.
    """
    target = vanilla[-1][1]
    if not first_reach(ours, target) < math.inf:
        target = min((distance for _, distance in ours if math.isfinite(distance)), default=math.nan)
    ratio = first_reach(vanilla, target) / first_reach(ours, target)
    return ratio if math.isfinite(ratio) else math.nan


def ratio_over_seeds(ratios: Sequence[float]) -> Measured:
    """The geometric mean of ratios, with the interval of Student's t for their logarithms.

    Args:
        ratios: one a seed. Those that are not positive numbers are left out.
    """
    logs = over_seeds([math.log(ratio) if ratio > 0 else math.nan for ratio in ratios])
    return replace(logs, value=math.exp(logs.value), low=math.exp(logs.low), high=math.exp(logs.high))


def is_speedup(ratio: Measured) -> bool:
    """Whether a ratio is at least `SPEEDUP`, with an interval above 1."""
    return ratio.value >= SPEEDUP and ratio.low > 1


def is_worse(ratio: Measured) -> bool:
    """Whether the interval of a ratio lies below 1."""
    return ratio.high < 1
