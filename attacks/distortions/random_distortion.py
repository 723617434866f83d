"""Distortions drawn at random, for training against them."""

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
    """One row of a table: an attack, the range that its strength is drawn from (uniformly), and how often it is drawn.

    Args:
        attack: its strength does not matter, its other parameters do.
        low: strength at one end of the range.
        high: strength at the other end; it may be below `low`.
        probability: in [0, 1].

    Raises:
        ValueError: a strength that the attack refuses, a probability out of range, or an attack that changes the size
            of images, because a batch has one size.
    """

    attack: Attack
    low: float
    high: float
    probability: float

    def __post_init__(self) -> None:
        self.attack.with_strength(self.low)
        self.attack.with_strength(self.high)
        if not self.attack.keeps_size:
            raise ValueError(f"expected an attack that keeps the size of images, got {self.attack!r}")
        if not 0 <= self.probability <= 1:
            raise ValueError(f"expected a probability in [0, 1], got {self.probability}")

    def at(self, place: float) -> Attack:
        """Return the attack with the strength at a place between `low` (0) and `high` (1)."""
        return self.attack.with_strength(self.low + place * (self.high - self.low))

    def scaled(self, scale: float) -> Choice:
        """Return the same row with both strengths moved towards the identity; at scale 0 they are the identity."""
        origin = self.attack.identity
        low, high = (origin + scale * (strength - origin) for strength in (self.low, self.high))
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
"""Distortions that a mark should survive. One draw in ten leaves the image as it is."""


@dataclass(frozen=True)
class RandomDistortion(BaseAttack):
    """A distortion and a strength that are drawn anew at each call, from the call's generator.

    Two uniform draws choose, the first one the distortion and the second one its strength. Then the distortion itself
    draws.

    Args:
        table: what is drawn. If its probabilities sum to less than 1, nothing happens in the rest of the cases.
        per_sample: draw for each image, not once for the batch. This is slower, and has less variance between
            batches. A list of generators needs it.

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

    def scaled(self, scale: float) -> RandomDistortion:
        """Return the same distortions with all strengths scaled, for training that starts mildly.

        Args:
            scale: 0 for the identity, up to 1 for the strengths of the table.

        Raises:
            ValueError: a scale outside [0, 1].
        """
        if not 0 <= scale <= 1:
            raise ValueError(f"expected a scale in [0, 1], got {scale}")
        return dataclasses.replace(self, table=tuple(choice.scaled(scale) for choice in self.table))

    def draw(self, generator: torch.Generator | None = None) -> Attack | None:
        """Draw one distortion from the table, or None where nothing is to happen."""
        which, place = draw_uniform(torch.empty(0), 2, [generator])[0].tolist()
        for choice in self.table:
            which -= choice.probability
            if which < 0:
                return choice.at(place)
        return None

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.per_sample:
            # From a shared generator each image draws its distortion and then what that needs, in order.
            shared = len({id(generator) for generator in generators}) < len(generators)
            return self._one_by_one(images, generators) if shared else self._grouped(images, generators)
        if any(generator is not generators[0] for generator in generators):
            raise ValueError("expected one generator, got several: set per_sample=True to draw for each sample")
        return self._distort(images, generators)

    def _one_by_one(self, images: Tensor, generators: Draws) -> Tensor:
        rows = zip(images.split(1), generators, strict=True)
        return torch.cat([self._distort(row, [generator]) for row, generator in rows])

    def _grouped(self, images: Tensor, generators: Draws) -> Tensor:
        """Distort images that draw the same distortion together, which is faster if a model does it."""
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
