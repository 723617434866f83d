"""What every attack is: a frozen value that you call on images."""

from __future__ import annotations

import dataclasses
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any, ClassVar, Literal, Self, TypeAlias, TypeVar, final, overload

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from privgen.attacks.draws import Draws, Generator, one_per_image
from privgen.attacks.steps import Work, advancing, count_steps
from privgen.io.batches import progress_bar
from privgen.io.image_like import ImagesLike, to_pixels


Kind: TypeAlias = Literal["D", "P", "A", "M"]
"""D distortion, P purification or regeneration, A adaptive attack, M attack on a model."""

Given = TypeVar("Given", Tensor, Image.Image, NDArray[Any])

RANGE_TOLERANCE = 1e-3
"""Values that are outside [0, 1] by no more than this are taken for rounding and clamped; others are an error."""


class BaseAttack(ABC):
    """An attack without a strength of its own: how it is called, and how attacks are combined.

    Subclasses are frozen dataclasses and write `_run` and `label`.
    """

    @overload
    def __call__(self, images: Given, *, generator: Generator = None, progress: bool = False) -> Given: ...
    @overload
    def __call__(
        self, images: str | os.PathLike[str], *, generator: Generator = None, progress: bool = False
    ) -> Image.Image: ...
    @overload
    def __call__(
        self, images: list[Given] | tuple[Given, ...], *, generator: Generator = None, progress: bool = False
    ) -> list[Given]: ...
    @final
    def __call__(self, images: ImagesLike, *, generator: Generator = None, progress: bool = False) -> ImagesLike:
        """Attack one image or many.

        Args:
            images: a Pillow image, a path, an array, a tensor, or a list of these: see
                `privgen.io.image_like.ImagesLike`. Floating-point tensors (B, 3, H, W) or (3, H, W) in [0, 1] are
                attacked as one batch, on their device, and let gradients through; everything else is attacked image
                by image, without gradients. Tensors of half precision are computed in float32.
            generator: where randomness comes from. With a list, image i draws from `generator[i]` alone, so that a
                batch gives what its images give one by one. From a single generator, images draw in order.
            progress: show a bar of the model's steps on standard error, if that is a terminal. Attacks that count no
                steps show none.

        Returns:
            What came in, attacked: a list for a list, the same type and mode. A path gives a Pillow image. The size
            stays too, unless `keeps_size` is false. Where the size changes, transparency is dropped.

        Raises:
            ValueError: an array or tensor has another shape, type or range, or `generator` another length.
            TypeError: something that is no image.
            PrivgenError: a file cannot be read, or the attack needs something that is missing.
        """
        if isinstance(images, Tensor) and images.is_floating_point():
            if images.ndim == 4 and images.shape[1] == 3:
                with self._bar([images.shape] * len(images), progress):
                    return self._on_batch(images, one_per_image(generator, len(images)))
            if images.ndim == 3 and images.shape[0] == 3:
                with self._bar([images.shape], progress):
                    return self._on_batch(images[None], one_per_image(generator, 1))[0]
        pixels, restore = to_pixels(images)
        pairs = zip(pixels, one_per_image(generator, len(pixels)), strict=True)
        with torch.no_grad(), self._bar([image.shape for image in pixels], progress):
            restored: ImagesLike = restore([self._on_batch(image[None], [source])[0] for image, source in pairs])
        return restored

    @contextmanager
    def _bar(self, shapes: list[torch.Size], progress: bool) -> Iterator[None]:
        """Show a bar of the steps for images of these shapes, (..., H, W), if it is wanted."""
        total = sum(count_steps(self.work(*shape[-2:])) for shape in shapes) if progress else 0
        if total == 0:
            yield
            return
        with progress_bar(total, self.label, unit="step") as bar, advancing(bar, total):
            yield

    def _on_batch(self, images: Tensor, generators: Draws) -> Tensor:
        """Check a floating-point tensor (B, 3, H, W), and attack it in float32 or float64."""
        if 0 in images.shape:
            raise ValueError(f"expected images of shape (B, 3, H, W), got {tuple(images.shape)}")
        low, high = (float(bound) for bound in torch.aminmax(images.detach()))
        # Written so that NaN fails as well.
        if not (low >= -RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):
            raise ValueError(f"expected images in [0, 1], got values in [{low:g}, {high:g}]")
        # float16 and bfloat16 can neither hold pixel coordinates nor sum a neighbourhood.
        compute_dtype = torch.promote_types(images.dtype, torch.float32)
        return self.apply(images.to(compute_dtype), generators).to(images.dtype)

    @final
    def apply(self, images: Tensor, generators: Draws) -> Tensor:
        """Attack a batch without checks; for attacks that are made of attacks.

        Args:
            images: (B, 3, H, W) float32 or float64 in [0, 1].
            generators: one for each image.

        Returns:
            (B, 3, H, W) in [0, 1]; of another height and width if `keeps_size` is false.
        """
        return self._run(images, generators).clamp(0, 1)

    @abstractmethod
    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        """The attack itself, on (B, 3, H, W) float32 or float64 in [0, 1]. The caller clamps.

        The result has the same shape. If `keeps_size` is false, its height and width may differ. They may depend on
        the size of the images and on the attack's parameters, but not on random draws, because a batch has one size.
        """

    @property
    def keeps_size(self) -> bool:
        """Whether images keep their height and width."""
        return True

    def prepare(self) -> None:  # noqa: B027 - most attacks need nothing
        """Load what the attack needs, to find out what is missing before work begins.

        Raises:
            PrivgenError: something is missing.
        """

    def work(self, height: int, width: int) -> tuple[Work, ...]:
        """Return what a model does to attack an image of that size; empty if the attack counts no steps.

        Raises:
            PrivgenError: the model cannot be found or read.
        """
        del height, width
        return ()

    def notes(self, height: int, width: int) -> tuple[str, ...]:
        """Return what you should know of the attack on an image of that size, such as that it worked on a smaller one.

        Raises:
            PrivgenError: the model cannot be found or read.
        """
        del height, width
        return ()

    @property
    @abstractmethod
    def label(self) -> str:
        """A short name of letters, digits and underscores, for JSON keys and file names: `jpeg_50`."""

    def repeat(self, times: int) -> Sequence:
        """Return this attack `times` times in a row, each time with new random draws.

        Raises:
            ValueError: `times` is below 1.
        """
        if times < 1:
            raise ValueError(f"expected times >= 1, got {times}")
        return Sequence(*[self] * times)


@dataclass(frozen=True, repr=False, init=False)
class Sequence(BaseAttack):
    """Attacks one after the other. Sequences among them are flattened.

    Args:
        attacks: at least one.

    Raises:
        ValueError: there is no attack, or something that is not an attack.
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
        """Labels joined by `then`; equal ones in a row are counted: `jpeg_50_x3_then_blur_4`."""
        runs = [(attack.label, len(list(group))) for attack, group in groupby(self.attacks)]
        return "_then_".join(label if count == 1 else f"{label}_x{count}" for label, count in runs)

    @property
    def keeps_size(self) -> bool:
        """Whether every attack of the sequence keeps the size."""
        return all(attack.keeps_size for attack in self.attacks)

    def prepare(self) -> None:
        for attack in self.attacks:
            attack.prepare()

    def work(self, height: int, width: int) -> tuple[Work, ...]:
        """Return the work of all attacks, as if none changed the size."""
        return tuple(part for attack in self.attacks for part in attack.work(height, width))

    def notes(self, height: int, width: int) -> tuple[str, ...]:
        """Return what all attacks say, as long as none has changed the size."""
        said: list[str] = []
        for attack in self.attacks:
            said += attack.notes(height, width)
            if not attack.keeps_size:
                break
        return tuple(said)

    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        for attack in self.attacks:
            images = attack.apply(images, generators)
        return images


@dataclass(frozen=True, repr=False)
class Attack(BaseAttack):
    """An attack with a strength in its own unit.

    Subclasses set the class attributes below and a default `strength`, add keyword-only parameters if they have any,
    and write `_run`. At the identity strength images come back bit for bit, unless `identity_deviation` says
    otherwise.

    Args:
        strength: how hard, in `unit`.

    Raises:
        ValueError: the strength is not a number within `bounds`, or not a whole one if `whole` asks for that.
    """

    name: ClassVar[str]
    kind: ClassVar[Kind]
    unit: ClassVar[str]
    sweep: ClassVar[tuple[float, ...]]
    """Strengths of an evaluation, from mild to hard."""
    identity: ClassVar[float]
    """The strength that changes nothing."""
    bounds: ClassVar[tuple[float, float]]
    """Smallest and largest allowed strength."""
    whole: ClassVar[bool] = False
    """Whether the strength must be a whole number."""
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
        """Return the same attack at another strength, rounded if strengths are whole numbers."""
        return dataclasses.replace(self, strength=round(strength) if self.whole else strength)

    @classmethod
    def at(cls, fraction: float) -> Self:
        """Return the attack at a fraction of the way from its identity (0) to the end of its sweep (1)."""
        strength = cls.identity + fraction * (cls.sweep[-1] - cls.identity)
        return cls(round(strength) if cls.whole else strength)

    def _changed_parameters(self) -> dict[str, Any]:
        """Parameters that differ from their defaults, without the strength."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {key: now for key, (now, default) in values.items() if key != "strength" and now != default}


class ResizingAttack(Attack):
    """An attack that gives images another size."""

    @property
    def keeps_size(self) -> bool:
        """Always false, though single images may have the new size already."""
        return False


def as_label(text: str) -> str:
    """Return a text as letters, digits and underscores; a minus becomes `minus`, everything else an underscore."""
    text = text.replace("-", "minus")
    return "".join(char if char.isalnum() else "_" for char in text)
