"""The training scenes as a text-to-image model sees them: latents and token ids, encoded once and kept in a file."""

import hashlib
import json
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPTokenizer

from privgen.data.scenes import draw, sample_spec
from privgen.errors import PrivgenError
from privgen.io.files import write_bytes


FINGERPRINT = "fingerprint"
"""In the header of a cache: what its latents depend on."""


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Token ids of shape (prompts, max_length), padded as Stable Diffusion's pipelines pad them."""
    return tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def scene_seed(seed: int, number: int) -> int:
    """What scene `number` of a run is drawn from."""
    return seed * 100_000_000 + number


def load_or_encode_scenes(
    path: Path, vae: AutoencoderKL, tokenizer: CLIPTokenizer, count: int, seed: int, batch_size: int = 64
) -> dict[str, Tensor]:
    """Latents and captions of the training scenes, from the cache or encoded now.

    Args:
        path: the cache, a safetensors file; written whole or not at all.
        vae: encodes the scenes.
        tokenizer: of the captions.
        count: number of scenes; scene i is drawn from `scene_seed(seed, i)`.
        seed: of the run.
        batch_size: scenes encoded at once.

    Returns:
        "latents" of shape (count, C, h, w), float16, scaled to unit variance, and "ids" of shape (count, length),
        int16.

    Raises:
        PrivgenError: the cache cannot be read or written, or holds what another autoencoder, tokenizer, seed or number
            of scenes gave. Caches of earlier versions do not say what they hold: of them only the number is checked.
    """
    fingerprint = scenes_fingerprint(vae, tokenizer, count, seed)
    if path.exists():
        return load_scenes(path, count, fingerprint)
    cache = _encode(vae, tokenizer, count, seed, batch_size)
    write_bytes(path, save(cache, metadata={FINGERPRINT: fingerprint}), overwrite=True)
    return cache


def scenes_fingerprint(vae: AutoencoderKL, tokenizer: CLIPTokenizer, count: int, seed: int) -> str:
    """Digest of what the cached tensors depend on, 64 hexadecimal digits.

    Of the autoencoder only the encoder counts, so that training its decoder further leaves the cache valid.
    """
    words = sorted(tokenizer.get_vocab().items())
    rest = [vae.config.scaling_factor, seed, count, tokenizer.model_max_length, words]
    return weights_fingerprint(vae, rest, ("encoder.", "quant_conv."))


def weights_fingerprint(module: nn.Module, settings: object, prefixes: tuple[str, ...] = ("",)) -> str:
    """Digest of a module's weights and of settings, 64 hexadecimal digits.

    Args:
        module: whose weights.
        settings: what JSON can hold.
        prefixes: of the weights that count.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        if name.startswith(prefixes):
            digest.update(name.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    digest.update(json.dumps(settings).encode())
    return digest.hexdigest()


def load_scenes(path: Path, count: int, fingerprint: str | None = None) -> dict[str, Tensor]:
    """What `load_or_encode_scenes` has written.

    Args:
        path: the cache.
        count: scenes that it must hold.
        fingerprint: that it must have, unless it has none; None is any.

    Raises:
        PrivgenError: it cannot be read, or is not the one that was asked for.
    """
    remedy = "delete it to have the scenes encoded again, or name another file in the recipe"
    try:
        with safe_open(path, "pt") as file:
            kept = (file.metadata() or {}).get(FINGERPRINT)
            cache = {name: file.get_tensor(name) for name in ("latents", "ids")}
    except (OSError, SafetensorError) as error:
        raise PrivgenError(f"The cache of scenes {path} cannot be read ({error}); {remedy}.") from error
    held = len(cache["latents"])
    if held != count or len(cache["ids"]) != count:
        raise PrivgenError(
            f"The cache {path} holds {held} scenes, and the recipe asks for {count}; set scenes={held}, or {remedy}."
        )
    if fingerprint is not None and kept not in (None, fingerprint):
        raise PrivgenError(f"The cache {path} was made with another autoencoder, tokenizer or seed; {remedy}.")
    return cache


@torch.no_grad()
def _encode(vae: AutoencoderKL, tokenizer: CLIPTokenizer, count: int, seed: int, batch_size: int) -> dict[str, Tensor]:
    latents, ids = [], []
    for first in tqdm(range(0, count, batch_size), desc="encoding scenes", unit="batch"):
        specs = [sample_spec(scene_seed(seed, i)) for i in range(first, min(first + batch_size, count))]
        pixels = torch.from_numpy(np.stack([draw(spec).pixels for spec in specs])).to(vae.device)
        latents.append((vae.encode(2 * pixels - 1).latent_dist.mean * vae.config.scaling_factor).half().cpu())
        ids.append(tokenize(tokenizer, [spec.caption for spec in specs]).short())
    return {"latents": torch.cat(latents).contiguous(), "ids": torch.cat(ids)}
