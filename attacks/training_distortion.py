"""What marks are trained to survive, by names that a recipe can hold."""

from collections.abc import Sequence

from privgen.attacks.distortions.random_distortion import TRAINING_TABLE, Choice, RandomDistortion
from privgen.attacks.purification.regeneration import Rinsing
from privgen.errors import UsageError


REGENERATION = (Choice(Rinsing(), 0.51, 3.49, 0.1),)
"""Further rows, through mini, for recipes that name them: once to three times. No gradients flow through these."""


def training_distortion(names: Sequence[str], scale: float = 1.0) -> RandomDistortion | None:
    """Rows of `TRAINING_TABLE` and `REGENERATION`, one drawn anew for every image.

    The rows keep their probabilities: where one is left out, the image stays as it is; one that is named twice is
    drawn twice as often.

    Args:
        names: attacks of these tables, such as "jpeg".
        scale: share of the tables' strengths, in [0, 1].

    Returns:
        The distortion; None if there are no names.

    Raises:
        UsageError: the table has no such attack, or the scale is out of range.
    """
    rows = TRAINING_TABLE + REGENERATION
    known = [choice.attack.name for choice in rows]
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UsageError(f"Nothing is trained against {', '.join(unknown)}; choose from {', '.join(known)}.")
    if not 0 <= scale <= 1:
        raise UsageError(f"Distortions have a scale from 0 to 1, not {scale:g}.")
    table = tuple(choice for choice in rows for _ in range(names.count(choice.attack.name)))
    return RandomDistortion(table=table, per_sample=True).scaled(scale) if table else None
