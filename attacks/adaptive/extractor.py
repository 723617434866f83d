"""Attacks by whoever has the extractor: taking a mark away, and writing one that its owner never wrote."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import relu

from privgen.attacks.adaptive.examples import Examples, ExamplesLike, as_examples
from privgen.attacks.adaptive.pgd import GradientAttack, Loss
from privgen.attacks.registry import register
from privgen.errors import PrivgenError
from privgen.watermark.protocols import device_of


MARGIN = 1.0
"""How far beyond 0 logits are pushed; those of clean images have a standard deviation of about 1."""


def hinge(logits: Tensor, signs: Tensor, margin: float = MARGIN) -> Tensor:
    """How much is missing until every logit has its sign with a margin.

    Bits that have it already weigh nothing, so that the small change that is allowed goes into the others.

    Args:
        logits: (B, n_bits).
        signs: (n_bits,) or (B, n_bits) of -1 and 1.
        margin: at least 0.

    Returns:
        (B,), each at least 0.
    """
    return relu(margin - signs * logits).mean(dim=1)


def as_extractor(model: Any, device: str = "auto") -> Any:
    """An extractor, as it was given, or the one that a named model ships, loaded and kept.

    Raises:
        PrivgenError: the model cannot be found or read, or has no extractor.
    """
    return _kept(os.fspath(model), device) if isinstance(model, (str, os.PathLike)) else model


@lru_cache(maxsize=1)
def _kept(model: str, device: str) -> Any:
    from privgen.hub import load_extra

    return load_extra("extractor", model, device=device).requires_grad_(False)


@dataclass(frozen=True, kw_only=True, repr=False)
class _ExtractorAttack(GradientAttack):
    """What removal and forgery share.

    Args:
        model: a model that ships an extractor, by name, folder or Hub id; or an extractor.
    """

    def prepare(self) -> None:
        as_extractor(self.model, self.device)

    def _toward(self, extractor: Any, signs: Tensor) -> Loss:
        return lambda x: hinge(extractor(x.to(signs.device)), signs)


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class ExtractorRemoval(_ExtractorAttack):
    """Turn every bit that the extractor reads into its opposite. No key is needed.

    Args:
        strength: largest change of a value, in 1/255.
        model: a model that ships an extractor, or an extractor.
        steps: see `GradientAttack`, as the others.
    """

    name = "extractor_removal"

    def _objective(self, image: Tensor) -> Loss:
        extractor = as_extractor(self.model, self.device)
        return self._toward(extractor, -_signs(_read(extractor, image)[0]))


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class ExtractorForgery(_ExtractorAttack):
    """Make the extractor read given bits, or those that it reads from marked images.

    Args:
        strength: largest change of a value, in 1/255.
        bits: 0 and 1, the message to forge; or give `marked`.
        marked: images with one key's mark, a folder or a batch; what the extractor reads from them together is forged.
        model: a model that ships an extractor, or an extractor.
        steps: see `GradientAttack`, as the others.

    Raises:
        ValueError: bits other than 0 and 1, or `bits` and `marked` both.
        PrivgenError: the marked images cannot be read.
    """

    name = "extractor_forgery"

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
        object.__setattr__(self, "marked", as_examples(self.marked))

    def prepare(self) -> None:
        super().prepare()
        if self.bits is None and self.marked is None:
            raise PrivgenError(
                f"{self.name} needs to know what to forge: give images that carry it with --marked "
                "(marked= or bits= in Python)."
            )

    def _objective(self, image: Tensor) -> Loss:
        extractor = as_extractor(self.model, self.device)
        signs = self._signs(extractor)
        n_bits = _read(extractor, image).shape[1]
        if len(signs) != n_bits:
            raise PrivgenError(f"{self.name}: this extractor reads {n_bits} bits; give as many, not {len(signs)}.")
        return self._toward(extractor, signs)

    def _signs(self, extractor: Any) -> Tensor:
        """(n_bits,) of -1 and 1, what is to be forged."""
        examples = as_examples(self.marked)
        if examples is not None:
            return _message(extractor, examples)
        return 2 * torch.tensor(self.bits, dtype=torch.float32, device=device_of(extractor)) - 1

    def _changed_parameters(self) -> dict[str, Any]:
        changed = super()._changed_parameters()
        return {key: "".join(map(str, value)) if key == "bits" else value for key, value in changed.items()}


@lru_cache(maxsize=1)
def _message(extractor: Any, examples: Examples) -> Tensor:
    """Signs of the message that marked images carry together: their logits add up, what each one shows does not."""
    return _signs(torch.cat([_read(extractor, batch) for batch in examples.images.split(16)]).sum(dim=0))


def _read(extractor: Any, images: Tensor) -> Tensor:
    """Logits (B, n_bits), without gradients."""
    with torch.no_grad():
        logits: Tensor = extractor(images.to(device_of(extractor)))
    return logits


def _signs(logits: Tensor) -> Tensor:
    """Signs of logits as -1 and 1; 0 reads as bit 0, as it does in detection."""
    return torch.where(logits > 0, 1.0, -1.0)
