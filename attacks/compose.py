"""Attacks made of attacks."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import ClassVar

from torch import Tensor

from privgen.attacks.base import Attack, BaseAttack, Draws


@dataclass(frozen=True, repr=False, init=False)
class Sequence(BaseAttack):
    """Attacks one after the other; sequences within are flattened.

    Args:
        attacks: at least one.

    Raises:
        ValueError: no attack given, or something that is none.
    """

    attacks: tuple[BaseAttack, ...]

    def __init__(self, *attacks: BaseAttack) -> None:
        if not attacks or not all(isinstance(attack, BaseAttack) for attack in attacks):
            raise ValueError(f"expected attacks, at least one, got {attacks!r}")
        flat = [part for attack in attacks for part in (attack.attacks if isinstance(attack, Sequence) else (attack,))]
        object.__setattr__(self, "attacks", tuple(flat))

    def __repr__(self) -> str:
        return f"Sequence({', '.join(map(repr, self.attacks))})"

    @property
    def label(self) -> str:
        """Labels joined by `then`, equal ones counted: `jpeg_50_x3_then_blur_4`."""
        runs = [(attack.label, len(list(group))) for attack, group in groupby(self.attacks)]
        return "_then_".join(label if count == 1 else f"{label}_x{count}" for label, count in runs)

    def prepare(self) -> None:
        for attack in self.attacks:
            attack.prepare()

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        for attack in self.attacks:
            images = attack.apply(images, generators)
        return images


@dataclass(frozen=True, kw_only=True, repr=False)
class Combination(Attack):
    """Several attacks in a row at one relative strength, as WAVES combines them (arXiv 2401.08573).

    Args:
        strength: share of the way from each member's identity (0) to the end of its sweep (1).
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
