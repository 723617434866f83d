"""Diffusion models as purifiers see them: noise in, its estimate out, in pixels or latents."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

from privgen.diffusion.parameterisation import PREDICTIONS, NoiseLevel, Prediction, predict_noise
from privgen.errors import PrivgenError
from privgen.io.fingerprints import weights_fingerprint
from privgen.io.pixels import pad_to_multiple


Space: TypeAlias = Literal["pixel", "latent"]

DENOISER = "privgen/denoiser"
"""Folder in a model where its unconditional pixel denoiser lies, an ordinary `DDPMPipeline`."""

DEFAULT_SIZE = 256
"""Side in pixels that a network which does not tell is taken to know best."""


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Denoiser:
    """An unconditional diffusion model with a discrete noise schedule.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps, where x_0 is the image in [-1, 1] or its latent, and abar the
    scheduler's `alphas_cumprod`.

    Args:
        network: called as `network(x, t)` or, with a condition, `network(x, t, encoder_hidden_states=...)`; returns
            an object with the prediction in `sample`, (B, C, H, W) or with a learned variance (B, 2 C, H, W).
        scheduler: a Diffusers scheduler that the network was trained for: its schedule and prediction type count.
        vae: an autoencoder for latents, or None for pixels.
        condition: (1, tokens, width) what the text encoder says of the empty prompt, or None.
        name: what stands for it in representations.

    Raises:
        PrivgenError: a scheduler without cumulative alphas, or a network that needs more than a text.
    """

    network: nn.Module
    scheduler: Any
    vae: Any = None
    condition: Tensor | None = None
    name: str = ""

    alphas_cumprod: Tensor = field(init=False)
    """(N,) float64 on the CPU; index t is the noise after t + 1 steps."""
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
        # Whoever hands it in may step its own scheduler meanwhile: only numbers are taken from it.
        object.__setattr__(self, "alphas_cumprod", self.scheduler.alphas_cumprod.detach().double().cpu())
        object.__setattr__(self, "_logs", self.alphas_cumprod.log().tolist())
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
        """Where the noise is added."""
        return "pixel" if self.vae is None else "latent"

    @property
    def factor(self) -> int:
        """Pixels along the side of a latent."""
        return 1 if self.vae is None else 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def multiple(self) -> int:
        """What sides of images are padded to a multiple of."""
        return self.factor * 2 ** (len(getattr(self.network.config, "block_out_channels", (1,))) - 1)

    @property
    def size(self) -> int:
        """Side of the images that the network was trained on, in pixels."""
        size = getattr(self.network.config, "sample_size", None)
        largest = max(size) if isinstance(size, Sequence) else size
        return self.factor * largest if largest else DEFAULT_SIZE

    def encode(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Images (B, 3, H, W) in [0, 1] as x_0 on the network's device, padded; and their height and width."""
        x = 2 * pad_to_multiple(images, self.multiple) - 1
        x_0 = x if self.vae is None else encode_latents(self.vae, x)
        return x_0.to(self._place.device), (images.shape[-2], images.shape[-1])

    def decode(self, x_0: Tensor, size: tuple[int, int]) -> Tensor:
        """What `encode` gave, as images (B, 3, H, W) in [0, 1], and a little beyond."""
        x = x_0 if self.vae is None else decode_latents(self.vae, x_0)
        return (x / 2 + 0.5)[..., : size[0], : size[1]]

    @property
    def _place(self) -> Tensor:
        """A tensor with the network's device and precision."""
        return next(iter(self.network.parameters()), torch.zeros(()))

    def alpha_bar(self, t: float) -> float:
        """The abar after t + 1 steps of noise, between steps by log-linear interpolation; 1 at t = -1."""
        low = math.floor(t)
        near, far = (self._logs[min(i, self.steps - 1)] if i >= 0 else 0.0 for i in (low, low + 1))
        return math.exp(near + (t - low) * (far - near))

    def level(self, t: float) -> NoiseLevel:
        """How x_t is made of x_0 and eps."""
        alpha_bar = self.alpha_bar(t)
        return NoiseLevel(alpha_bar**0.5, (1 - alpha_bar) ** 0.5)

    @property
    def steps(self) -> int:
        """N, the number of steps of the schedule."""
        return len(self.alphas_cumprod)

    def output(self, x: Tensor, t: float) -> Tensor:
        """The network's own prediction, in the precision of `x`."""
        place = self._place
        when = torch.tensor(t, device=place.device, dtype=torch.float32 if t % 1 else torch.long)
        text = {}
        if self.condition is not None:
            text["encoder_hidden_states"] = self.condition.to(place).expand(len(x), -1, -1)
        predicted: Tensor = self.network(x.to(place), when, **text).sample
        return predicted.to(x)

    def noise(self, x: Tensor, t: float) -> Tensor:
        """The estimate of eps in x_t, for t in [0, N - 1] that need not be whole."""
        predicted = self.output(x, t)[:, : x.shape[1]]
        return predict_noise(predicted, x, self.level(t), self.prediction)


def wants_more(network: nn.Module) -> bool:
    """Whether a network is conditioned on more than a time and a text: a class, or what SDXL's is."""
    config = network.config
    names = ("addition_embed_type", "class_embed_type", "num_class_embeds")
    return any(getattr(config, name, None) is not None for name in names)


def encode_latents(vae: Any, x: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [-1, 1] as scaled latents, in the precision of `x`: the mean where there is one."""
    place = next(vae.parameters())
    encoded = vae.encode(x.to(place))
    latents: Tensor = encoded.latent_dist.mode() if hasattr(encoded, "latent_dist") else encoded.latents
    shift, scale = getattr(vae.config, "shift_factor", None) or 0, getattr(vae.config, "scaling_factor", None) or 1
    return (latents - shift).to(x.dtype) * scale


def decode_latents(vae: Any, latents: Tensor) -> Tensor:
    """The reverse of `encode_latents`: (B, 3, H, W) in [-1, 1] and a little beyond."""
    shift, scale = getattr(vae.config, "shift_factor", None) or 0, getattr(vae.config, "scaling_factor", None) or 1
    place = next(vae.parameters())
    decoded: Tensor = vae.decode((latents / scale + shift).to(place)).sample
    return decoded.to(latents.dtype)


def denoiser_of(pipeline: Any, name: str = "") -> Denoiser:
    """The denoiser in a pipeline: its UNet, with the empty prompt and the autoencoder if it has them.

    Args:
        pipeline: unconditional in pixels such as `DDPMPipeline`, in latents such as `LDMPipeline`, or text-to-image
            such as `StableDiffusionPipeline`.
        name: see `Denoiser`.

    Raises:
        PrivgenError: no UNet, or one that `Denoiser` refuses.
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
    """Load what a model denoises with.

    Args:
        model: an embedded model, a folder or a Hub id: see `privgen.hub.resolve_model`.
        space: "pixel" for the pixel denoiser that the model is or carries in `DENOISER`, "latent" for its own UNet
            on latents; by default the pixel denoiser where there is one.
        device: see `privgen.hub.resolve_device`.
        dtype: see `privgen.hub.resolve_dtype`.

    Raises:
        PrivgenError: the model cannot be found or read, or has no denoiser in that space.
        UsageError: device or precision do not exist.
    """
    from privgen.hub import load_pipeline, resolve_model

    source = resolve_model(model)
    folder = None if space == "latent" else _denoiser_folder(source)
    pipeline = load_pipeline(folder or source, device=device, dtype=dtype, safety_checker=False)
    pipeline.set_progress_bar_config(disable=True)
    found = denoiser_of(pipeline, os.fspath(model))
    freeze(pipeline)
    found.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # PyTorch's overloads lack it
    if space not in (None, found.space):
        raise PrivgenError(
            f"The model {os.fspath(model)} has no {space} denoiser; leave the space out, or use another."
        )
    return found


def freeze(pipeline: Any) -> Any:
    """Ask for no gradients of a pipeline's weights; those of images flow all the same."""
    for component in pipeline.components.values():
        if isinstance(component, nn.Module):
            component.requires_grad_(False)
    return pipeline


def as_denoiser(model: Any, space: Space | None = None, device: str = "auto", dtype: str = "auto") -> Denoiser:
    """A denoiser, from one, from a pipeline, or loaded by name and kept: see `load_denoiser`.

    Raises:
        PrivgenError: as for `load_denoiser` and `denoiser_of`, or it denoises in another space.
    """
    if isinstance(model, (str, os.PathLike)):
        return _kept(os.fspath(model), space, device, dtype)
    found = model if isinstance(model, Denoiser) else denoiser_of(model)
    if space not in (None, found.space):
        raise PrivgenError(f"This model denoises in {found.space} space, not {space}; leave the space out.")
    return found


@lru_cache(maxsize=2)
def _kept(model: str, space: Space | None, device: str, dtype: str) -> Denoiser:
    return load_denoiser(model, space=space, device=device, dtype=dtype)


def _denoiser_folder(source: str) -> str | None:
    """Where a model's own pixel denoiser lies; Hub ids have it if it was downloaded or can be."""
    root = Path(source)
    if not root.is_dir():
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        try:
            root = Path(snapshot_download(source, allow_patterns=f"{DENOISER}/**"))
        except (HfHubHTTPError, LocalEntryNotFoundError, OSError):
            return None  # loading the model itself will say what is wrong
    folder = root / DENOISER
    return str(folder) if (folder / "model_index.json").is_file() else None
