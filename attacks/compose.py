"""Several attacks in a row: at one relative strength, or in pairs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from privgen.attacks.base import Attack, BaseAttack, Sequence
from privgen.attacks.draws import Draws


@dataclass(frozen=True, repr=False)
class Combination(Attack):
    """Several attacks in a row, all at the same relative strength, as WAVES combines them (arXiv 2401.08573).

    Args:
        strength: fraction of the way from each member's identity (0) to the end of its sweep (1).
    """

    kind = "D"
    unit = "of each member's range"
    sweep = (0.1, 0.25, 0.5, 0.75, 1.0)
    identity = 0
    bounds = (0, 1)
    members: ClassVar[tuple[type[Attack], ...]]

    strength: float = 0.5

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        return Sequence(*(member.at(self.strength) for member in self.members)).apply(images, generators)


def pairs_of(first: Iterable[BaseAttack], then: Iterable[BaseAttack]) -> tuple[Sequence, ...]:
    """Return every attack of one list followed by every attack of another: a sweep of two.

    Args:
        first: attacks that come first, such as geometric ones.
        then: attacks that come second, such as photometric ones.

    Returns:
        One sequence for each pair, in the order of `first`, and then of `then`.
    """
    seconds = tuple(then)
    return tuple(Sequence(one, other) for one in first for other in seconds)
