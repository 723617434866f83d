"""What a protection achieved, in numbers: success of the adversary, drop, and how many times the steps it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


HALF = 0.5
"""The success at which steps are compared: half of the best that clean images give."""

LEAST_LEARNT = 0.1
"""An adversary that raises the judge's score on clean images by less than this has not learnt the subject. Then
there is nothing to compare with."""


def success(score: float, untrained: float, clean: float) -> float:
    """How much of the subject an adversary learnt.

    Args:
        score: the judge's, of the images that the adversary draws.
        untrained: the same of the model before it is personalised.
        clean: the best score of an adversary that trained on clean images.

    Returns:
        0 for a model that knows no more than before, 1 for one that is as good as the best on clean images. It may lie
        outside 0 to 1. Not a number if the adversary does not learn from clean images either.
    """
    return (score - untrained) / (clean - untrained) if clean - untrained >= LEAST_LEARNT else math.nan


def drop(successes: Sequence[float]) -> float:
    """What a protection takes from the adversary at its best.

    Args:
        successes: at every effort and every guidance scale, at least one. The adversary picks the best.

    Returns:
        1 less the best success: 0 where protection does nothing, 1 where nothing is learnt.
    """
    return math.nan if any(map(math.isnan, successes)) else 1 - max(successes)


def steps_to(level: float, curve: Mapping[int, float]) -> float:
    """The training steps at which success first reaches a level.

    Args:
        level: of success, above 0.
        curve: success by number of training steps. At 0 steps it is 0.

    Returns:
        Steps, interpolated linearly between those that were measured. Infinity if the level was not reached.
    """
    before, below = 0, 0.0
    for steps in sorted(curve):
        if curve[steps] >= level:
            return before + (steps - before) * (level - below) / (curve[steps] - below)
        before, below = steps, curve[steps]
    return math.inf


def cost_factor(curve: Mapping[int, float], clean: Mapping[int, float]) -> float:
    """How many times the steps an adversary needs on protected images, for half of the success on clean ones.

    Args:
        curve: success on protected images, by number of training steps.
        clean: the same on clean images.

    Returns:
        The ratio of the steps. Infinity if half of the success was not reached on protected images; not a number if
        it was not reached on clean images.
    """
    level = HALF * max(clean.values())
    needed = steps_to(level, clean) if level > 0 else math.inf
    return steps_to(level, curve) / needed if math.isfinite(needed) else math.nan
