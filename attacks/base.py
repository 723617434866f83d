"""What every attack is: a frozen value that turns a batch of images into a batch of images."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, ClassVar, Literal, Self, TypeAlias, final

import torch
from torch import Tensor

from privgen.attacks.draws import Draws, Generator, one_per_image


Kind: TypeAlias = Literal["D", "P", "A", "M"]
"""Distortion, purification or regeneration, adaptive attack, model-side attack."""

RANGE_TOLERANCE = 1e-3
"""Values so little outside [0, 1] are rounding, and clamped; others are an error."""


class BaseAttack(ABC):
    """An attack without a strength of its own: the call, and what is built on it.

    Subclasses are frozen dataclasses and write `_run` and `label`.
    """

    @final
    def __call__(self, images: Tensor, *, generator: Generator = None) -> Tensor:
        """Attack a batch.

        Half-precision images are computed in float32 and returned in their own type.

        Args:
            images: (B, 3, H, W) in [0, 1], any floating type and device.
            generator: where randomness comes from. With a list, sample i draws from `generator[i]` only, so
                a batch equals its samples one by one. With a single one, samples draw from it in order.

        Returns:
            Attacked images, (B, 3, H, W) in [0, 1], type and device of `images`.

        Raises:
            ValueError: `images` has another shape, type or range, or `generator` another length.
        """
        _check_images(images)
        generators = one_per_image(generator, len(images))
        # float16 and bfloat16 can neither hold pixel coordinates nor sum a neighbourhood.
        compute_dtype = torch.promote_types(images.dtype, torch.float32)
        return self.apply(images.to(compute_dtype), generators).to(images.dtype)

    @final
    def apply(self, images: Tensor, generators: Draws) -> Tensor:
        """The call without checks, for attacks made of attacks; float32 or float64, one generator per sample."""
        return self._run(images, generators).clamp(0, 1)

    @abstractmethod
    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        """The attack itself: (B, 3, H, W) float32 or float64 in [0, 1] to the same shape; the caller clamps."""

    def prepare(self) -> None:  # noqa: B027 - most attacks need nothing
        """Load what the attack needs, so that what is missing shows before work begins.

        Raises:
            PrivgenError: something is missing.
        """

    @property
    @abstractmethod
    def label(self) -> str:
        """A short name of letters, digits and underscores, for JSON keys and file names: `jpeg_50`."""

    def repeat(self, times: int) -> Sequence:
        """This attack `times` times in a row, each time with new random draws.

        Raises:
            ValueError: `times` is below 1.
        """
        if times < 1:
            raise ValueError(f"expected times >= 1, got {times}")
        return Sequence(*[self] * times)


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
class Attack(BaseAttack):
    """An attack with a strength in its own unit.

    Subclasses state the class attributes below and a default `strength`, add parameters if they have any, and
    write `_run`. At the identity strength the images come back bit for bit, unless `identity_deviation` says
    otherwise.

    Args:
        strength: how hard, in `unit`.

    Raises:
        ValueError: the strength is not a finite number within `bounds`, or not whole where `whole` asks for it.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    unit: ClassVar[str]
    sweep: ClassVar[tuple[float, ...]]
    """Strengths from mild to hard: those of an evaluation."""
    identity: ClassVar[float]
    """The strength that changes nothing."""
    bounds: ClassVar[tuple[float, float]]
    """Smallest and largest strength that makes sense."""
    whole: ClassVar[bool] = False
    """Whether strengths are whole numbers."""
    identity_deviation: ClassVar[str] = ""
    """What the identity strength changes after all; empty if nothing."""

    strength: float

    def __post_init__(self) -> None:
        low, high = self.bounds
        if isinstance(self.strength, bool) or not isinstance(self.strength, int | float):
            raise ValueError(f"{self.name}: expected a number as strength, got {self.strength!r}")
        if not low <= self.strength <= high:
            raise ValueError(
                f"{self.name}: expected a strength in [{low:g}, {high:g}] {self.unit}, got {self.strength:g}"
            )
        if self.whole and self.strength != round(self.strength):
            raise ValueError(f"{self.name}: expected a whole number as strength, got {self.strength:g}")

    def __repr__(self) -> str:
        shown = [f"strength={self.strength:g}"]
        shown += [f"{key}={value!r}" for key, value in self._changed_parameters().items()]
        return f"{type(self).__name__}({', '.join(shown)})"

    @property
    def label(self) -> str:
        """Name, strength and changed parameters: `jpeg_50`, `crop_0_5`, `crop_0_5_place_centre`."""
        parts = [self.name, f"{self.strength:g}"]
        parts += [f"{key}_{value}" for key, value in self._changed_parameters().items()]
        return as_label("_".join(parts))

    @property
    def is_identity(self) -> bool:
        """Whether this strength is the one that changes nothing."""
        return self.strength == self.identity

    def with_strength(self, strength: float) -> Self:
        """The same attack at another strength, rounded where strengths are whole."""
        return dataclasses.replace(self, strength=round(strength) if self.whole else strength)

    @classmethod
    def at(cls, fraction: float) -> Self:
        """The attack at a share of the way from its identity (0) to the end of its sweep (1)."""
        strength = cls.identity + fraction * (cls.sweep[-1] - cls.identity)
        return cls(strength=round(strength) if cls.whole else strength)

    def _changed_parameters(self) -> dict[str, Any]:
        """Parameters other than the strength that differ from their defaults."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {key: now for key, (now, default) in values.items() if key != "strength" and now != default}


def as_label(text: str) -> str:
    """Text as letters, digits and underscores; a minus becomes `minus`, everything else an underscore."""
    text = text.replace("-", "minus")
    return "".join(char if char.isalnum() else "_" for char in text)


def _check_images(images: Tensor) -> None:
    if not isinstance(images, Tensor) or not images.is_floating_point():
        kind = images.dtype if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"expected images as a floating-point tensor, got {kind}")
    if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape:
        raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
    low, high = (float(bound) for bound in torch.aminmax(images.detach()))
    # Written so that NaN fails as well.
    if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
        raise ValueError(f"expected images in [0, 1], got values in [{low:g}, {high:g}]")
