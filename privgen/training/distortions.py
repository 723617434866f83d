"""Distortions that marks are trained to survive, by names that a recipe can hold."""

from collections.abc import Sequence

from privgen.attacks.distortions.random_distortion import TRAINING_TABLE, Choice, RandomDistortion
from privgen.attacks.purification.regeneration import Rinsing
from privgen.errors import UsageError


REGENERATION = (Choice(Rinsing(fit="whole"), 0.51, 3.49, 0.1),)
"""More rows, for recipes that name them: one to three regenerations with mini. They let no gradients through."""


def training_distortion(names: Sequence[str], scale: float = 1.0) -> RandomDistortion | None:
    """Return a distortion that draws one row of `TRAINING_TABLE` and `REGENERATION` anew for every image.

    Rows keep their probabilities: an image stays as it is where a row that is left out would be drawn, and a row that
    is named twice is drawn twice as often.

    Args:
        names: attacks in these tables, such as "jpeg".
        scale: scales the tables' strengths, from 0 (no change) to 1.

    Returns:
        The distortion; None if there are no names.

    Raises:
        UsageError: no row is called like that, or the scale is out of range.
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
