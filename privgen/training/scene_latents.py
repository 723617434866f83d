"""The scenes that a text-to-image model is trained on, encoded once to latents and token ids and kept in a file."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPTokenizer

from privgen.data.scenes import draw, sample_spec
from privgen.diffusion.latents import encode
from privgen.errors import PrivgenError
from privgen.io.fingerprints import weights_fingerprint
from privgen.io.progress import Bar
from privgen.io.tensor_cache import load_or_make, load_tensors
from privgen.models.family import Canvas


_WHAT = "latents of scenes"


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """Token ids (prompts, max_length) of prompts, padded as in Diffusers' pipelines for Stable Diffusion."""
    return tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt").input_ids


def scene_seed(seed: int, number: int) -> int:
    """The seed of scene `number` of a run."""
    return seed * 100_000_000 + number


def load_or_encode_scenes(
    path: Path, vae: Any, tokenizer: CLIPTokenizer, count: int, seed: int, batch_size: int = 64
) -> dict[str, Tensor]:
    """Load latents and captions of the training scenes from a cache, or encode the scenes now.

    Args:
        path: the cache, see `privgen.io.tensor_cache.load_or_make`.
        vae: encodes the scenes, at the size that it is for.
        tokenizer: encodes the captions.
        count: number of scenes; scene i has the seed `scene_seed(seed, i)`.
        seed: of the run.
        batch_size: scenes to encode at a time.

    Returns:
        "latents" (count, C, h, w) float16, scaled, and "ids" (count, length) int16, the tokens of the captions.

    Raises:
        PrivgenError: the cache cannot be read or written, or another autoencoder, tokenizer, seed or number of scenes
            made it.
    """
    if path.exists():
        load_scenes(path, count)  # for its error, which names the number of scenes that would fit
    fingerprint = scenes_fingerprint(vae, tokenizer, count, seed)
    return load_or_make(path, fingerprint, lambda: _encode(vae, tokenizer, count, seed, batch_size), _WHAT)


def scenes_fingerprint(vae: Any, tokenizer: CLIPTokenizer, count: int, seed: int) -> str:
    """A digest of all that the latents and token ids depend on, 64 hexadecimal digits.

    The decoder does not count, so a cache stays valid when the decoder is trained further.
    """
    words = sorted(tokenizer.get_vocab().items())
    size = Canvas.of_vae(vae).size
    rest = [size, vae.config.scaling_factor, seed, count, tokenizer.model_max_length, words]
    return weights_fingerprint(vae, rest, ("encoder.", "quant_conv."))


def load_scenes(path: Path, count: int) -> dict[str, Tensor]:
    """Load what `load_or_encode_scenes` has kept, whatever networks made it.

    Args:
        path: the cache.
        count: number of scenes that it must hold.

    Raises:
        PrivgenError: the cache cannot be read, or holds another number of scenes.
    """
    cache = load_tensors(path, _WHAT)
    if not {"latents", "ids"} <= cache.keys():
        raise PrivgenError(f"{path} holds no {_WHAT}; delete it, or name another file in the recipe.")
    held = len(cache["latents"])
    if held != count or len(cache["ids"]) != count:
        raise PrivgenError(
            f"{path} holds {held} scenes, and the recipe asks for {count}; set scenes={held}, or delete the file to "
            "have the scenes encoded again."
        )
    return cache


@torch.no_grad()
def _encode(vae: Any, tokenizer: CLIPTokenizer, count: int, seed: int, batch_size: int) -> dict[str, Tensor]:
    size, latents, ids = Canvas.of_vae(vae).size, [], []
    for first in Bar(range(0, count, batch_size), desc="encoding scenes", unit="batch"):
        specs = [sample_spec(scene_seed(seed, i)) for i in range(first, min(first + batch_size, count))]
        pixels = torch.from_numpy(np.stack([draw(spec, size).pixels for spec in specs]))
        latents.append(encode(vae, pixels).half().cpu())
        ids.append(tokenize(tokenizer, [spec.caption for spec in specs]).short())
    return {"latents": torch.cat(latents).contiguous(), "ids": torch.cat(ids)}
