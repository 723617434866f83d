"""Attacks with the extractor: removing a mark, and writing one that its owner never wrote."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import relu

from privgen.attacks.adaptive.examples import Examples, ExamplesLike, as_examples
from privgen.attacks.adaptive.pgd import GradientAttack, Loss
from privgen.attacks.registry import register
from privgen.errors import PrivgenError
from privgen.watermark.protocols import ExtractorLike, config_value, device_of
from privgen.watermark.read.logits import read_logits


ExtractorModel: TypeAlias = "str | os.PathLike[str] | ExtractorLike"
"""A model that carries an extractor, by name, folder or Hub id; or an extractor."""

MARGIN = 1.0
"""How far beyond 0 logits are pushed. The logits of unmarked images have a standard deviation of about 1."""


def hinge(logits: Tensor, signs: Tensor, margin: float = MARGIN) -> Tensor:
    """Return how much is missing until every logit has its sign, with a margin.

    Bits that have their sign already weigh nothing, so that the allowed change goes into the others.

    Args:
        logits: (B, n_bits).
        signs: (n_bits,) or (B, n_bits) of -1 and 1.
        margin: at least 0.

    Returns:
        (B,), each at least 0.
    """
    return relu(margin - signs * logits).mean(dim=1)


def as_extractor(model: ExtractorModel, device: str = "auto") -> ExtractorLike:
    """Return an extractor: the given one, or one that is loaded by its model's name and kept.

    Args:
        model: see `ExtractorModel`.
        device: see `privgen.hub.resolve_device`.

    Raises:
        PrivgenError: the model cannot be found or read, or has no extractor.
    """
    return _kept(os.fspath(model), device) if isinstance(model, (str, os.PathLike)) else model


@lru_cache(maxsize=1)
def _kept(model: str, device: str) -> ExtractorLike:
    from privgen.hub import load_extra

    extractor: ExtractorLike = load_extra("extractor", model, device=device).requires_grad_(False)
    return extractor


@dataclass(frozen=True, repr=False)
class _ExtractorAttack(GradientAttack):
    """An attack whose network is the extractor.

    Args:
        strength: largest change of a pixel value, 0 to 255, in 1/255.
        model: a model that carries an extractor, or an extractor.
    """

    _: KW_ONLY
    model: ExtractorModel = "mini"

    def prepare(self) -> None:
        as_extractor(self.model, self.device)


@register
@dataclass(frozen=True, repr=False)
class ExtractorRemoval(_ExtractorAttack):
    """Turns every bit that the extractor reads from the image into its opposite; no key is needed.

    Args:
        strength: largest change of a pixel value, 0 to 255, in 1/255.
        model: a model that carries an extractor (an embedded model's name, a folder, a Hub id), or an extractor.
        steps: number of gradient steps, at least 1.
        step_size: change of a pixel value in one step, in 1/255; by default 2.5 strength / steps.
        device: device for a model given by name.
        dtype: not used; extractors are loaded in float32.
    """

    name = "extractor_removal"

    def _objective(self, image: Tensor) -> Loss:
        extractor = as_extractor(self.model, self.device)
        signs = -_signs(read_logits(image, extractor)[0]).to(device_of(extractor))
        return lambda x: hinge(extractor(x.to(signs.device)), signs)


@register
@dataclass(frozen=True, repr=False)
class ExtractorForgery(_ExtractorAttack):
    """Makes the extractor read given bits from the image, or the bits that it reads from marked images.

    Args:
        strength: largest change of a pixel value, 0 to 255, in 1/255.
        bits: the message to forge, 0s and 1s; or give `marked`.
        marked: images with the mark of one key, a folder or a batch (N, 3, H, W). The attack forges the message that
            the extractor reads from them together.
        model: a model that carries an extractor (an embedded model's name, a folder, a Hub id), or an extractor.
        steps: see `ExtractorRemoval`, also for the other parameters.

    Raises:
        ValueError: bits other than 0 and 1, or both `bits` and `marked`.
        PrivgenError: a marked image cannot be read.
    """

    name = "extractor_forgery"

    _: KW_ONLY
    bits: Sequence[int] | None = None
    marked: ExamplesLike | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits is not None:
            given: Any = self.bits  # which may come from a command line
            bits = given if isinstance(given, Sequence) and not isinstance(given, str) else ()
            if not bits or any(bit not in (0, 1) for bit in bits):
                raise ValueError(f"{self.name}: expected bits as a sequence of 0 and 1, got {self.bits!r}")
            if self.marked is not None:
                raise ValueError(f"{self.name}: expected bits or marked images, got both")
            object.__setattr__(self, "bits", tuple(int(bit) for bit in bits))
        if self.marked is not None and not isinstance(self.marked, Examples):
            # Images are kept at the size that the extractor reads.
            size = config_value(as_extractor(self.model, self.device), "size", None)
            object.__setattr__(self, "marked", as_examples(self.marked, size))

    def prepare(self) -> None:
        super().prepare()
        if self.bits is None and self.marked is None:
            raise PrivgenError(
                f"{self.name} needs to know what to forge: give images that carry it with --marked "
                "(marked= or bits= in Python)."
            )

    def _objective(self, image: Tensor) -> Loss:
        extractor: Any = as_extractor(self.model, self.device)
        examples = as_examples(self.marked)
        if examples is not None:
            signs = _message(extractor, examples)
        else:
            signs = 2 * torch.tensor(self.bits, dtype=torch.float32) - 1
        n_bits = read_logits(image, extractor).shape[1]
        if len(signs) != n_bits:
            raise PrivgenError(f"{self.name}: this extractor reads {n_bits} bits; give as many, not {len(signs)}.")
        wanted = signs.to(device_of(extractor))
        return lambda x: hinge(extractor(x.to(wanted.device)), wanted)

    def _changed_parameters(self) -> dict[str, Any]:
        changed = super()._changed_parameters()
        return {key: "".join(map(str, value)) if key == "bits" else value for key, value in changed.items()}


@lru_cache(maxsize=1)
def _message(extractor: ExtractorLike, examples: Examples) -> Tensor:
    """Return the signs of the message that marked images carry together, on the CPU.

    Their logits add up; what each of them shows does not.
    """
    return _signs(read_logits(examples.images, extractor).sum(dim=0))


def _signs(logits: Tensor) -> Tensor:
    """Return the signs of logits as -1 and 1; 0 reads as bit 0, as it does in detection."""
    return torch.where(logits > 0, 1.0, -1.0)
