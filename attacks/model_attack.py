"""What attacks that need a model have in common."""

from __future__ import annotations

import os
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from privgen.attacks.base import Attack, Kind
from privgen.attacks.draws import Draws, spawn
from privgen.attacks.purification.denoiser import Denoiser
from privgen.errors import PrivgenError
from privgen.io.fingerprints import weights_fingerprint


@dataclass(frozen=True, kw_only=True, repr=False)
class ModelAttack(Attack):
    """An attack with a model, which is handed in, or named and loaded when it is first needed.

    Subclasses write `_attack` and `prepare`. Every sample draws from a generator of its own, seeded from the one that
    the caller gave, so that neither batching nor tiling changes the result. Weights may be of half precision;
    images and noise are kept in float32 or float64 all the same.

    Args:
        model: the name of an embedded model, a folder or a Hub id, or a loaded Diffusers pipeline.
        device: where a named model is loaded to: see `privgen.hub.resolve_device`.
        dtype: precision of a named model's weights: see `privgen.hub.resolve_dtype`.
    """

    kind: ClassVar[Kind] = "P"
    identity = 0
    whole = True

    model: Any = "mini"
    device: str = "auto"
    dtype: str = "auto"

    @abstractmethod
    def _attack(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        """As `_run`, at a strength above the identity, with generators that no other sample uses."""

    @final
    def _run(self, images: Tensor, generators: Draws) -> Tensor:
        if self.is_identity:
            return images
        attacked = self._attack(images, spawn(generators)).to(images)
        if not attacked.isfinite().all():
            raise PrivgenError(
                f"{self.name}: the model's numbers went out of range; use --dtype float32 or bfloat16 "
                "(dtype= in Python), or another model."
            )
        return attacked

    def _changed_parameters(self) -> dict[str, Any]:
        changed = super()._changed_parameters()
        # The device changes results by rounding only.
        return {
            key: model_name(value) if key == "model" else value for key, value in changed.items() if key != "device"
        }


def model_name(model: Any) -> str:
    """What stands for a model in representations: its name, or class and digest of its weights."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    if isinstance(model, Denoiser):
        return model.name
    network = model
    if not isinstance(model, torch.nn.Module):
        network = getattr(model, "unet", None) or getattr(model, "transformer", None) or getattr(model, "vae", None)
    return type(model).__name__ + ("" if network is None else f"_{weights_fingerprint(network)[:8]}")
