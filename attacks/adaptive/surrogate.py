"""Attacks by whoever has collected images, but not the extractor: a network of their own stands for it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from privgen.attacks.adaptive.examples import Examples, ExamplesLike, as_examples, needed
from privgen.attacks.adaptive.pgd import GradientAttack, Loss
from privgen.attacks.registry import register
from privgen.errors import PrivgenError
from privgen.watermark.protocols import device_of


if TYPE_CHECKING:
    from privgen.attacks.adaptive.surrogate_network import SurrogateExtractor


FIT_STEPS = 400
"""Steps in which a surrogate is trained: about a minute on one core."""


@dataclass(frozen=True, kw_only=True, repr=False)
class _SurrogateAttack(GradientAttack):
    """What removal and forgery share.

    Args:
        strength: largest change of a value, in 1/255.
        marked: images with one key's mark: a folder or a batch.
        unmarked: images without it, others or the same.
        model: a `SurrogateExtractor` that has been fitted, or a folder that one was saved to; None fits one to the
            images when it is first needed, and keeps it.
        fit_steps: steps of that training.
        fit_seed: seed of that training.
        steps: see `GradientAttack`, as the others.

    Raises:
        ValueError: `fit_steps` below 1.
        PrivgenError: images cannot be read.
    """

    sign: ClassVar[int]

    model: Any = None
    marked: ExamplesLike | None = None
    unmarked: ExamplesLike | None = None
    fit_steps: int = FIT_STEPS
    fit_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit_steps < 1:
            raise ValueError(f"{self.name}: expected fit_steps >= 1, got {self.fit_steps}")
        for which in ("marked", "unmarked"):
            object.__setattr__(self, which, as_examples(getattr(self, which)))

    def prepare(self) -> None:
        self.network()

    def network(self) -> SurrogateExtractor:
        """The surrogate, as it was given, loaded or fitted.

        Raises:
            PrivgenError: there are no images to fit it to, or the folder holds none.
        """
        if isinstance(self.model, (str, os.PathLike)):
            return _loaded(os.fspath(self.model))
        if self.model is not None:
            given: SurrogateExtractor = self.model
            return given
        marked, unmarked = (
            needed(as_examples(getattr(self, which)), self.name, which) for which in ("marked", "unmarked")
        )
        return _fitted(marked, unmarked, self.fit_steps, self.fit_seed)

    def _objective(self, image: Tensor) -> Loss:
        network = self.network()
        place = device_of(network)
        return lambda x: self.sign * network(x.to(place))


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class SurrogateRemoval(_SurrogateAttack):
    """Make a marked image look unmarked to the surrogate: the surrogate attack of WAVES, arXiv 2401.08573.

    Args:
        strength: largest change of a value, in 1/255.
        marked: images with the mark: a folder or a batch.
        unmarked: images without it.
        model: a fitted surrogate instead of these.
        fit_steps: steps of its training.
        fit_seed: seed of its training.
        steps: see `GradientAttack`, as the others.
    """

    name = "surrogate_removal"
    sign = 1


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class SurrogateForgery(_SurrogateAttack):
    """Make an unmarked image look marked to the surrogate.

    Args:
        strength: see `SurrogateRemoval`, as the others.
    """

    name = "surrogate_forgery"
    sign = -1


@lru_cache(maxsize=2)
def _fitted(marked: Examples, unmarked: Examples, steps: int, seed: int) -> SurrogateExtractor:
    from privgen.attacks.adaptive.surrogate_network import fit_surrogate

    return fit_surrogate(marked.images, unmarked.images, steps=steps, seed=seed)


@lru_cache(maxsize=2)
def _loaded(folder: str) -> SurrogateExtractor:
    if not (Path(folder) / "config.json").is_file():
        raise PrivgenError(f"{folder} holds no surrogate; save one there with `save_pretrained`, or give images.")
    from privgen.attacks.adaptive.surrogate_network import SurrogateExtractor

    try:
        network: SurrogateExtractor = SurrogateExtractor.from_pretrained(
            folder, use_safetensors=True, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise PrivgenError(f"The surrogate in {folder} cannot be read: {error}") from error
    return network.eval().requires_grad_(False)
