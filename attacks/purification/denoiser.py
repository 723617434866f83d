"""Diffusion models as purifiers use them: from a noisy image to an estimate of its noise, in pixels or latents."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from privgen.attacks.steps import step_done
from privgen.diffusion.latents import decode, encode
from privgen.diffusion.parameterisation import PREDICTIONS, NoiseLevel, Prediction, predict_noise
from privgen.errors import PrivgenError
from privgen.io.files import read_small
from privgen.io.fingerprints import weights_fingerprint
from privgen.io.pixels import pad_to_multiple
from privgen.models.family import patch_of


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


Space: TypeAlias = Literal["pixel", "latent"]

DENOISER = "privgen/denoiser"
"""Folder in a model where its pixel denoiser lies, an ordinary unconditional `DDPMPipeline`."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Denoiser:
    """An unconditional diffusion model with a discrete noise schedule.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, where x_0 is the image in [-1, 1] or its latent, and abar is the
    scheduler's `alphas_cumprod`.

    Args:
        network: called as `network(x, t)`, or with a condition as `network(x, t, encoder_hidden_states=...)`. It
            returns an object whose `sample` is the prediction, (B, C, H, W), or (B, 2 C, H, W) with a learned
            variance.
        scheduler: the Diffusers scheduler that the network was trained for; its schedule and prediction type count.
        vae: the autoencoder of the latents, or None for pixels.
        condition: the text encoder's output for the empty prompt, (1, tokens, width), or None.
        name: stands for the denoiser in representations; by default class and digest of the network.
        canvas: side in pixels of the square images whose crops the network has learnt, if they are larger than the
            crops; by default `size`.

    Raises:
        PrivgenError: the scheduler has no `alphas_cumprod`, or the network needs more than a text.
    """

    network: nn.Module
    scheduler: Any
    vae: Any = None
    condition: Tensor | None = None
    name: str = ""
    canvas: int | None = None

    alphas_cumprod: Tensor = field(init=False)
    """(N,) float64 on the CPU; entry t is abar after t + 1 steps of noise."""
    _logs: list[float] = field(init=False)

    def __post_init__(self) -> None:
        if not hasattr(self.scheduler, "alphas_cumprod") or self.prediction not in PREDICTIONS:
            raise PrivgenError(
                f"{type(self.scheduler).__name__} has no noise schedule of cumulative alphas, which purification by "
                "this model needs; use another model, or regeneration."
            )
        if wants_more(self.network):
            raise PrivgenError(
                f"{type(self.network).__name__} wants more than an empty prompt; use another model, or regeneration."
            )
        # The caller may step the scheduler meanwhile, so only its numbers are kept.
        object.__setattr__(self, "alphas_cumprod", self.scheduler.alphas_cumprod.detach().double().cpu())
        object.__setattr__(self, "_logs", self.alphas_cumprod.log().tolist())
        if self.canvas is None:
            object.__setattr__(self, "canvas", self.size)
        if not self.name:
            object.__setattr__(self, "name", f"{type(self.network).__name__}_{weights_fingerprint(self.network)[:8]}")

    def __repr__(self) -> str:
        return f"Denoiser({self.name})"

    @property
    def prediction(self) -> Prediction:
        """What the network predicts, in Diffusers' words."""
        found: Prediction = self.scheduler.config.get("prediction_type", "epsilon")
        return found

    @property
    def learns_variance(self) -> bool:
        """Whether the network predicts a variance too."""
        config = self.network.config
        return getattr(config, "out_channels", None) == 2 * getattr(config, "in_channels", 0) > 0

    @property
    def space(self) -> Space:
        """Where noise is added."""
        return "pixel" if self.vae is None else "latent"

    @property
    def patch(self) -> int:
        """Side in pixels of what one latent shows; 1 without an autoencoder."""
        return 1 if self.vae is None else patch_of(self.vae)

    @property
    def multiple(self) -> int:
        """Sides of images are padded to a multiple of this number of pixels."""
        return self.patch * 2 ** (len(getattr(self.network.config, "block_out_channels", (1,))) - 1)

    @property
    def size(self) -> int | None:
        """Side in pixels of the images that the network was trained on; None if its configuration does not say."""
        size = getattr(self.network.config, "sample_size", None)
        largest = max(size) if isinstance(size, Sequence) else size
        return self.patch * largest if largest else None

    @property
    def steps(self) -> int:
        """N, the number of steps of the schedule."""
        return len(self.alphas_cumprod)

    def encode(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Pad images and turn them into x_0.

        Args:
            images: (B, 3, H, W) in [0, 1].

        Returns:
            x_0 on the network's device; and (H, W).
        """
        padded = pad_to_multiple(images, self.multiple)
        x_0 = 2 * padded - 1 if self.vae is None else encode(self.vae, padded)
        return x_0.to(self._place.device), (images.shape[-2], images.shape[-1])

    def decode(self, x_0: Tensor, size: tuple[int, int]) -> Tensor:
        """Turn the outputs of `encode` back into images (B, 3, H, W), in [0, 1] or slightly outside."""
        pixels = x_0 / 2 + 0.5 if self.vae is None else decode(self.vae, x_0)
        return pixels[..., : size[0], : size[1]]

    def alpha_bar(self, t: float) -> float:
        """Return abar after t + 1 steps of noise; log-linear between steps, and 1 at t = -1."""
        low = math.floor(t)
        near, far = (self._logs[min(i, self.steps - 1)] if i >= 0 else 0.0 for i in (low, low + 1))
        return math.exp(near + (t - low) * (far - near))

    def level(self, t: float) -> NoiseLevel:
        """Return how x_t is made of x_0 and eps."""
        alpha_bar = self.alpha_bar(t)
        return NoiseLevel(alpha_bar**0.5, (1 - alpha_bar) ** 0.5)

    def output(self, x: Tensor, t: float) -> Tensor:
        """Return the network's own prediction, in the precision of `x`."""
        place = self._place
        when = torch.tensor(t, device=place.device, dtype=torch.float32 if t % 1 else torch.long)
        text = {}
        if self.condition is not None:
            text["encoder_hidden_states"] = self.condition.to(place).expand(len(x), -1, -1)
        predicted: Tensor = self.network(x.to(place), when, **text).sample
        step_done(len(x))
        return predicted.to(x)

    def noise(self, x: Tensor, t: float) -> Tensor:
        """Return the estimate of eps in x_t, for t in [0, N - 1], whole or not."""
        predicted = self.output(x, t)[:, : x.shape[1]]
        return predict_noise(predicted, x, self.level(t), self.prediction)

    @property
    def _place(self) -> Tensor:
        """A tensor with the device and precision of the network."""
        return next(iter(self.network.parameters()), torch.zeros(()))


def wants_more(network: nn.Module) -> bool:
    """Whether a network needs more than a time and a text: a class, or the sizes that SDXL's network takes."""
    config = network.config
    names = ("addition_embed_type", "class_embed_type", "num_class_embeds")
    return any(getattr(config, name, None) is not None for name in names)


def denoiser_of(pipeline: DiffusionPipeline, name: str = "") -> Denoiser:
    """Return the denoiser in a pipeline: its UNet, with the empty prompt and the autoencoder if it has them.

    Args:
        pipeline: unconditional in pixels such as `DDPMPipeline`, unconditional in latents such as `LDMPipeline`, or
            text-to-image such as `StableDiffusionPipeline`.
        name: see `Denoiser`.

    Raises:
        PrivgenError: there is no UNet, or `Denoiser` refuses it.
    """
    unet = getattr(pipeline, "unet", None)
    if unet is None:
        raise PrivgenError(
            f"{type(pipeline).__name__} has no UNet, which purification needs; use another model, or regeneration."
        )
    vae = getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
    condition = None
    if hasattr(pipeline, "encode_prompt") and not wants_more(unet):
        with torch.no_grad():
            condition = pipeline.encode_prompt("", unet.device, 1, False)[0]
    return Denoiser(network=unet, scheduler=pipeline.scheduler, vae=vae, condition=condition, name=name)


def load_denoiser(
    model: str | os.PathLike[str] = "mini",
    *,
    space: Space | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Denoiser:
    """Load the denoiser of a model.

    Args:
        model: an embedded model's name, a folder or a Hub id: see `privgen.hub.resolve_model`.
        space: "pixel" for the pixel denoiser that the model is, or carries in `DENOISER`; "latent" for its own UNet
            on latents. By default the pixel denoiser if there is one.
        device: see `privgen.hub.resolve_device`.
        dtype: see `privgen.hub.resolve_dtype`.

    Raises:
        PrivgenError: the model cannot be found or read, or has no denoiser in that space.
        UsageError: there is no such device or precision.
    """
    from privgen.hub import load_pipeline, resolve_model

    source = resolve_model(model)
    folder = None if space == "latent" else _denoiser_folder(source)
    pipeline = load_pipeline(folder or source, device=device, dtype=dtype, safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    found = denoiser_of(pipeline, os.fspath(model))
    if folder and (canvas := _canvas_of(Path(folder).parents[1])):
        found = replace(found, canvas=canvas)
    freeze(pipeline)
    found.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # PyTorch's overloads lack it
    if space not in (None, found.space):
        raise PrivgenError(
            f"The model {os.fspath(model)} has no {space} denoiser; leave the space out, or use another."
        )
    return found


def freeze(pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """Switch off gradients of a pipeline's weights; gradients of images still flow."""
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False)
    return pipeline


def as_denoiser(
    model: str | os.PathLike[str] | DiffusionPipeline | Denoiser,
    space: Space | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> Denoiser:
    """Return a denoiser: the given one, that of a pipeline, or one that is loaded by name and kept.

    Args:
        model: a name as for `load_denoiser`, a pipeline as for `denoiser_of`, or a denoiser.
        space: see `load_denoiser`.
        device: see `load_denoiser`.
        dtype: see `load_denoiser`.

    Raises:
        PrivgenError: see `load_denoiser` and `denoiser_of`; or the given model denoises in another space.
    """
    if isinstance(model, (str, os.PathLike)):
        return _kept(os.fspath(model), space, device, dtype)
    # The attack that holds a pipeline names it, so the denoiser needs no digest of its weights.
    found = model if isinstance(model, Denoiser) else denoiser_of(model, type(model).__name__)
    if space not in (None, found.space):
        raise PrivgenError(f"This model denoises in {found.space} space, not {space}; leave the space out.")
    return found


@lru_cache(maxsize=2)
def _kept(model: str, space: Space | None, device: str, dtype: str) -> Denoiser:
    return load_denoiser(model, space=space, device=device, dtype=dtype)


def _canvas_of(root: Path) -> int | None:
    """The size of the images of the model in a folder, in pixels; None if its configurations do not say it."""
    places = [root / name / "config.json" for name in ("unet", "transformer", "vae")]
    configs = [json.loads(read_small(place)) for place in places if place.is_file()]
    if len(configs) != 2 or not places[-1].is_file():
        return None
    latents, vae = configs[0].get("sample_size"), SimpleNamespace(config=SimpleNamespace(**configs[1]))
    return latents * patch_of(vae) if isinstance(latents, int) else None


def _denoiser_folder(source: str) -> str | None:
    """Find a model's own pixel denoiser; a Hub id has one if it was downloaded before or can be now."""
    root = Path(source)
    if not root.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            root = Path(snapshot_download(source, allow_patterns=[f"{DENOISER}/**", "*/config.json"]))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
            return None  # loading the model itself will say what is wrong
    folder = root / DENOISER
    return str(folder) if (folder / "model_index.json").is_file() else None
