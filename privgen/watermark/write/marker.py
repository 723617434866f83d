"""What a mark is written with, chosen by the model at hand."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from huggingface_hub import snapshot_download
from torch import Tensor

from privgen.errors import PrivgenError, UsageError
from privgen.hub import load_extra, load_pipeline, resolve_model
from privgen.watermark.key import Key
from privgen.watermark.protocols import config_value, key_bits
from privgen.watermark.token import DEFAULT_TAU, token_embeddings
from privgen.watermark.write.loudness import loud_bits
from privgen.watermark.write.residual import PSNR_DB, at_psnr, decoded_difference, encode_canvas, latent_residuals
from privgen.watermark.write.robust_mark import RobustMarker
from privgen.watermark.write.with_token import token_residuals


Carrier = Literal["token", "latent"]

CARRIERS: tuple[Carrier, ...] = get_args(Carrier)

CONFIG = "privgen/privgen_config.json"
"""In a model's folder: what this package's networks in it were measured to do best."""


@dataclass(frozen=True, eq=False)
class Marker:
    """A key's mark, ready to be written.

    Attributes:
        carrier: what it is written with.
        size: side of the model's images.
        residuals: (B, 3, size, size) in [0, 1] to what the mark changes in them, same shape.
    """

    carrier: Carrier
    size: int
    residuals: Callable[[Tensor], Tensor]


def default_carrier(model: str = "mini") -> Carrier:
    """The carrier that a model's own measurements recommend; `latent` where it has none.

    Args:
        model: an embedded model's name, a folder or a Hub id.

    Raises:
        PrivgenError: the model cannot be found or fetched, or recommends what does not exist.
    """
    source = resolve_model(model)
    root = Path(source)
    try:
        if not root.is_dir():
            root = Path(snapshot_download(source, allow_patterns=[CONFIG]))
        file = root / CONFIG
        config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        carrier = config.get("default_carrier", "latent")
    except (OSError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300].rstrip(".")
        raise PrivgenError(f"The settings {CONFIG} of {source} cannot be read: {reason}; name a carrier.") from error
    if carrier not in CARRIERS:
        raise PrivgenError(
            f"The model {source} recommends the carrier {carrier!r}; name one of {', '.join(CARRIERS)}."
        )
    return carrier


def load_marker(
    key: Key,
    *,
    model: str = "mini",
    carrier: Carrier | None = None,
    seed: int = 0,
    robust_steps: int = 0,
    device: str = "auto",
    dtype: str = "auto",
) -> Marker:
    """Load what marks existing images in a key's name.

    Args:
        key: whose mark.
        model: an embedded model's name, a folder or a Hub id.
        carrier: by default the model's own choice.
        seed: of the noise that the carrier `token` works through; every image gets the same.
        robust_steps: see `make_marker`.
        device: see `privgen.hub.resolve_device`.
        dtype: see `privgen.hub.resolve_dtype`.

    Raises:
        PrivgenError: the model, or its network for that carrier, cannot be found or read.
        UsageError: an unknown carrier, device or precision, or marks that cannot be refined.
    """
    chosen = default_carrier(model) if carrier is None else carrier
    if chosen not in CARRIERS:
        raise UsageError(f"expected the carrier token or latent, got {chosen!r}")
    mapper, extractor = (load_extra(name, model, device=device) for name in (f"{chosen}_mapper", "extractor"))
    pipe = load_pipeline(model, device=device, dtype=dtype, safety_checker=False)
    return make_marker(
        chosen, [key], pipe=pipe, mapper=mapper, extractor=extractor, seed=seed, robust_steps=robust_steps
    )


def make_marker(
    carrier: Carrier,
    keys: Sequence[Key],
    *,
    pipe: Any,
    mapper: Any,
    extractor: Any = None,
    seed: int = 0,
    robust_steps: int = 0,
) -> Marker:
    """What marks images, from a model that is loaded.

    Args:
        carrier: what to mark with.
        keys: whose mark: one for all images, or one for each.
        pipe: a text-to-image pipeline; it is left as it was.
        mapper: the model's network for that carrier.
        extractor: what will read the marks: they are written for it, see `privgen.watermark.write.loudness`. Without it all
            bits are equally loud.
        seed: see `load_marker`.
        robust_steps: rounds in which marks are fitted to their image for the extractor, so that they survive regeneration;
            see `privgen.watermark.write.robust_mark`. Only for the carrier `latent`.

    Raises:
        UsageError: marks that cannot be refined: by the carrier `token`, without an extractor, or through a model
            whose scheduler is not of the DDPM family.
    """
    if robust_steps and (carrier == "token" or extractor is None):
        raise UsageError("Only marks of the carrier latent are refined, and for an extractor; leave robust_steps out.")
    robust_marker = RobustMarker(pipe, extractor, robust_steps) if robust_steps else None
    bits = key_bits(keys, mapper)

    def with_latents(canvases: Tensor, message: Tensor) -> Tensor:
        return latent_residuals(canvases, message, vae=pipe.vae, latent_mapper=mapper)

    @torch.no_grad()
    def with_token(canvases: Tensor, message: Tensor) -> Tensor:
        embedding, negative = token_embeddings(mapper, message)
        tau = float(config_value(mapper, "tau", DEFAULT_TAU))
        generators = [torch.Generator().manual_seed(seed) for _ in canvases]
        return token_residuals(canvases, embedding, negative_token=negative, pipe=pipe, tau=tau, generator=generators)

    write = with_latents if carrier == "latent" else with_token

    def residuals(canvases: Tensor) -> Tensor:
        if extractor is None:
            return write(canvases, bits)
        quality = torch.full((len(canvases),), PSNR_DB, device=canvases.device)

        def marked(message: Tensor) -> Tensor:
            return at_psnr(canvases, write(canvases, message).to(canvases), quality)

        loud = loud_bits(bits, canvases, extractor, marked)
        if robust_marker is None:
            return write(canvases, loud)
        z = encode_canvas(pipe.vae, canvases)
        residual = robust_marker(z, mapper(loud, height=z.shape[-2], width=z.shape[-1]), bits, canvases=canvases)
        return decoded_difference(pipe.vae, z, z + residual)

    return Marker(carrier, _side(pipe), residuals)


def _side(pipe: Any) -> int:
    """Side of the square images that a pipeline was trained for, in pixels."""
    sample = pipe.unet.config.sample_size
    return int((sample if isinstance(sample, int) else sample[0]) * pipe.vae_scale_factor)
