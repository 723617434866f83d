"""Distortions at random, for training in the loop."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from privgen.attacks.base import Attack, BaseAttack
from privgen.attacks.distortions.degradation import JPEG, Blur, Noise
from privgen.attacks.distortions.geometric import Crop, Erase, Rotation
from privgen.attacks.distortions.photometric import Brightness, Contrast, Gamma, Hue, Saturation, Sharpness
from privgen.attacks.draws import Draws, draw_uniform


@dataclass(frozen=True)
class Choice:
    """One row of a table: an attack, the strengths it is drawn from (uniformly) and how often.

    Args:
        attack: its own strength does not matter, its other parameters do.
        low: strength at one end.
        high: strength at the other end; may be below `low`.
        probability: in [0, 1].

    Raises:
        ValueError: a strength that the attack refuses, or a probability out of range.
    """

    attack: Attack
    low: float
    high: float
    probability: float

    def __post_init__(self) -> None:
        self.attack.with_strength(self.low)
        self.attack.with_strength(self.high)
        if not 0 <= self.probability <= 1:
            raise ValueError(f"expected a probability in [0, 1], got {self.probability}")

    def at(self, place: float) -> Attack:
        """The attack with the strength at a place between `low` (0) and `high` (1)."""
        return self.attack.with_strength(self.low + place * (self.high - self.low))

    def scaled(self, share: float) -> Choice:
        """The same row with both strengths moved towards the identity; share 0 leaves the identity alone."""
        origin = self.attack.identity
        low, high = (origin + share * (strength - origin) for strength in (self.low, self.high))
        return dataclasses.replace(self, low=low, high=high)


TRAINING_TABLE = (
    Choice(JPEG(mode="approximate"), 40, 95, 0.18),
    Choice(Crop(), 0.5, 1, 0.12),
    Choice(Rotation(), -20, 20, 0.1),
    Choice(Erase(), 0, 0.25, 0.05),
    Choice(Blur(), 0, 8, 0.1),
    Choice(Noise(), 0, 0.08, 0.1),
    Choice(Brightness(), 0.6, 1.8, 0.07),
    Choice(Contrast(), 0.6, 1.8, 0.05),
    Choice(Saturation(), 0.3, 2, 0.03),
    Choice(Hue(), -45, 45, 0.03),
    Choice(Gamma(), 0.6, 1.8, 0.03),
    Choice(Sharpness(), 0, 2, 0.04),
)
"""What a mark should survive; one batch in ten stays as it is."""


@dataclass(frozen=True)
class RandomDistortion(BaseAttack):
    """A distortion and its strength drawn anew at each call, from the call's generator.

    Two uniform draws decide, the first about the attack, the second about its strength; the attack itself draws
    after them.

    Args:
        table: what is drawn; where the probabilities sum to less than 1, nothing is done in the rest of the cases.
        per_sample: draw for each sample by itself, not once for the batch. Slower, with less variance between
            batches; a list of generators needs it.

    Raises:
        ValueError: the probabilities sum to more than 1.
    """

    table: tuple[Choice, ...] = TRAINING_TABLE
    per_sample: bool = False

    def __post_init__(self) -> None:
        total = sum(choice.probability for choice in self.table)
        if total > 1 + 1e-6:
            raise ValueError(f"expected probabilities that sum to at most 1, got {total:g}")

    @property
    def label(self) -> str:
        """Always `random_distortion`."""
        return "random_distortion"

    def scaled(self, share: float) -> RandomDistortion:
        """The same distortions at a share of their strengths, for training that starts mildly.

        Raises:
            ValueError: share not in [0, 1].
        """
        if not 0 <= share <= 1:
            raise ValueError(f"expected a share in [0, 1], got {share}")
        return dataclasses.replace(self, table=tuple(choice.scaled(share) for choice in self.table))

    def draw(self, generator: torch.Generator | None = None) -> Attack | None:
        """One distortion from the table, or None where nothing is to be done."""
        row = draw_uniform(torch.empty(0), 2, [generator])[0]
        return self._choose(*row.tolist())

    def _choose(self, which: float, place: float) -> Attack | None:
        for choice in self.table:
            which -= choice.probability
            if which < 0:
                return choice.at(place)
        return None

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.per_sample:
            # From a shared generator each row draws its distortion and then what that needs, in order.
            shared = len({id(generator) for generator in generators}) < len(generators)
            return self._one_by_one(images, generators) if shared else self._grouped(images, generators)
        if any(generator is not generators[0] for generator in generators):
            raise ValueError("expected one generator, got several: set per_sample=True to draw for each sample")
        return self._distort(images, generators)

    def _one_by_one(self, images: Tensor, generators: Draws) -> Tensor:
        rows = zip(images.split(1), generators, strict=True)
        return torch.cat([self._distort(row, [generator]) for row, generator in rows])

    def _grouped(self, images: Tensor, generators: Draws) -> Tensor:
        """Rows that draw the same go through it together, which is faster where it is a model's work."""
        groups: dict[Attack | None, list[int]] = {}
        for i, generator in enumerate(generators):
            groups.setdefault(self.draw(generator), []).append(i)
        attacked: dict[int, Tensor] = {}
        for attack, rows in groups.items():
            part = images[rows]
            made = part if attack is None else attack.apply(part, [generators[i] for i in rows])
            attacked |= dict(zip(rows, made, strict=True))
        return torch.stack([attacked[i] for i in range(len(images))])

    def _distort(self, images: Tensor, generators: Draws) -> Tensor:
        attack = self.draw(generators[0])
        return images if attack is None else attack.apply(images, generators)
