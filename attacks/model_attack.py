"""What attacks that need a model share: the model, its name in representations, and randomness for each image."""

from __future__ import annotations

import os
from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias, final

import torch
from torch import Tensor, nn

from privgen.attacks.base import Attack, Kind
from privgen.attacks.draws import Draws, spawn
from privgen.attacks.purification.denoiser import Denoiser, freeze
from privgen.errors import PrivgenError, UsageError
from privgen.io.fingerprints import weights_fingerprint
from privgen.models.family import Canvas
from privgen.watermark.protocols import ExtractorLike


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from privgen.watermark.networks import Networks


PipelineLike: TypeAlias = "str | os.PathLike[str] | DiffusionPipeline"
"""The name of an embedded model, a folder, a Hub id, or a loaded Diffusers pipeline."""

ModelLike: TypeAlias = "PipelineLike | Networks | Denoiser | ExtractorLike | nn.Module"
"""A pipeline by name or loaded, networks, or a network by itself; each attack says what it takes."""


@dataclass(frozen=True, repr=False)
class ModelAttack(Attack):
    """An attack with a model. A model that is given by name is loaded when it is first needed, and kept.

    Subclasses write `_attack` and `prepare`. Each image draws from a generator of its own, which is seeded from the
    caller's, so that batches and tiles change nothing. Weights may have half precision; images and noise stay in
    float32 or float64.

    Args:
        strength: see the subclass.
        model: the name of an embedded model, a folder, a Hub id, or a loaded Diffusers pipeline.
        device: device for a model given by name, see `privgen.hub.resolve_device`.
        dtype: precision of the weights of a model given by name, see `privgen.hub.resolve_dtype`.

    Raises:
        PrivgenError: the model cannot be found or read, lacks what the attack needs, or its numbers overflow.
    """

    kind: ClassVar[Kind] = "P"
    identity = 0
    whole = True

    _: KW_ONLY
    model: ModelLike = "mini"
    device: str = "auto"
    dtype: str = "auto"

    @abstractmethod
    def _attack(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Attack as `_run` does, at a strength above the identity, with one fresh CPU generator for each image."""

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


def model_name(model: ModelLike) -> str:
    """Return a short text that differs between models: a name, or a class and eight digits of a digest of weights."""
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    if isinstance(model, Denoiser):
        return model.name
    network = model if isinstance(model, nn.Module) else None
    for name in ("unet", "transformer", "vae"):
        network = network or getattr(model, name, None)
    return type(model).__name__ + ("" if network is None else f"_{weights_fingerprint(network)[:8]}")


def as_pipeline(model: PipelineLike, device: str = "auto", dtype: str = "auto") -> DiffusionPipeline:
    """Return a pipeline: the given one, or one that is loaded by name and kept.

    Args:
        model: see `PipelineLike`.
        device: see `privgen.hub.resolve_device`.
        dtype: see `privgen.hub.resolve_dtype`.

    Raises:
        PrivgenError: the model cannot be found or read.
    """
    return _kept(os.fspath(model), device, dtype) if isinstance(model, (str, os.PathLike)) else model


@lru_cache(maxsize=1)
def _kept(model: str, device: str, dtype: str) -> DiffusionPipeline:
    from privgen.hub import load_pipeline

    return freeze(load_pipeline(model, device=device, dtype=dtype, safety_checker=False))


def size_of(pipeline: DiffusionPipeline) -> int | None:
    """Return the side in pixels of the square images that a pipeline is made for; None if it does not say."""
    try:
        if getattr(pipeline, "unet", None) is None and getattr(pipeline, "transformer", None) is None:
            return Canvas.of_vae(vae_of(pipeline)).size
        return Canvas.of_pipeline(pipeline).size
    except UsageError:
        return None


def vae_of(pipeline: DiffusionPipeline) -> Any:
    """Return a pipeline's autoencoder.

    Raises:
        PrivgenError: it has none.
    """
    vae = getattr(pipeline, "vae", None)
    if vae is None:
        raise PrivgenError(f"{type(pipeline).__name__} has no autoencoder; use a latent diffusion model.")
    return vae
