"""Attacks without the extractor: a network that the attacker trains on collected images stands for it."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from torch import Tensor

from privgen.attacks.adaptive.examples import Examples, ExamplesLike, as_pair, needed
from privgen.attacks.adaptive.pgd import GradientAttack, Loss
from privgen.attacks.registry import register
from privgen.errors import PrivgenError
from privgen.watermark.protocols import device_of


if TYPE_CHECKING:
    from privgen.attacks.adaptive.surrogate_network import SurrogateExtractor


SurrogateModel: TypeAlias = "str | os.PathLike[str] | SurrogateExtractor | None"
"""A fitted surrogate, a folder that one was saved to, or None to fit one to collected images."""

FIT_STEPS = 400
"""Training steps of a surrogate: about a minute on one core for squares of 128 pixels."""


@dataclass(frozen=True, repr=False)
class _SurrogateAttack(GradientAttack):
    """Follows the gradient of a surrogate of the extractor.

    Args:
        strength: largest change of a pixel value, 0 to 255, in 1/255.
        marked: images with the mark of one key: a folder or a batch (N, 3, H, W).
        unmarked: images without the mark; they may show something else.
        size: side in pixels of the squares that collected images are resized to; by default the shorter side of the
            first marked image, at most 256.
        model: a fitted `SurrogateExtractor`, or a folder that one was saved to. By default one is fitted to the
            images when it is first needed, and kept.
        fit_steps: training steps of the surrogate, at least 1.
        fit_seed: seed of the training.

    Raises:
        ValueError: `fit_steps` is below 1.
        PrivgenError: an image cannot be read.
    """

    sign: ClassVar[int]

    _: KW_ONLY
    model: SurrogateModel = None
    marked: ExamplesLike | None = None
    unmarked: ExamplesLike | None = None
    size: int | None = None
    fit_steps: int = FIT_STEPS
    fit_seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.fit_steps < 1:
            raise ValueError(f"{self.name}: expected fit_steps >= 1, got {self.fit_steps}")
        marked, unmarked = as_pair(self.marked, self.unmarked, self.size)
        object.__setattr__(self, "marked", marked)
        object.__setattr__(self, "unmarked", unmarked)

    def prepare(self) -> None:
        self.network()

    def network(self) -> SurrogateExtractor:
        """Return the surrogate: given, loaded or fitted.

        Raises:
            PrivgenError: there are no images to fit it to, or the folder holds no surrogate.
        """
        if isinstance(self.model, (str, os.PathLike)):
            return _loaded(os.fspath(self.model))
        if self.model is not None:
            return self.model
        marked, unmarked = needed(self.marked, self.name, "marked"), needed(self.unmarked, self.name, "unmarked")
        return _fitted(marked, unmarked, self.fit_steps, self.fit_seed)

    def _objective(self, image: Tensor) -> Loss:
        network = self.network()
        place = device_of(network)
        return lambda x: self.sign * network(x.to(place))


@register
@dataclass(frozen=True, repr=False)
class SurrogateRemoval(_SurrogateAttack):
    """Makes a marked image look unmarked to a network trained on collected images.

    This is the surrogate attack of WAVES (arXiv 2401.08573).

    Args:
        strength: largest change of a pixel value, 0 to 255, in 1/255.
        marked: images with the mark of one key: a folder or a batch (N, 3, H, W).
        unmarked: images without the mark; they may show something else.
        size: side in pixels of the squares that collected images are resized to; by default the shorter side of the
            first marked image, at most 256.
        model: a fitted `SurrogateExtractor`, or a folder that one was saved to. By default one is fitted to the
            images when it is first needed, and kept.
        fit_steps: training steps of the surrogate, at least 1.
        fit_seed: seed of the training.
        steps: number of gradient steps, at least 1.
        step_size: change of a pixel value in one step, in 1/255; by default 2.5 strength / steps.
    """

    name = "surrogate_removal"
    sign = 1


@register
@dataclass(frozen=True, repr=False)
class SurrogateForgery(_SurrogateAttack):
    """Makes an unmarked image look marked to a network trained on collected images.

    Args:
        strength: largest change of a pixel value, 0 to 255, in 1/255.
        marked: see `SurrogateRemoval`, also for the other parameters.
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
