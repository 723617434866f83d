"""Where the extractor's training starts: the best linear codes for this autoencoder, scenes and photographs.

Two codes share the latents. The carrier `latent` gets the patterns that images hide least, the carrier `token` the
textures that a text encoder has words for. Each is read as zero by the other's filters.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from privgen.data.patterns import TEXTURES
from privgen.data.photos import random_crop, random_view
from privgen.data.scenes import draw, sample_spec
from privgen.diffusion.loop import sample_generator
from privgen.diffusion.scene_cache import FINGERPRINT, weights_fingerprint
from privgen.diffusion.texture_latents import texture_changes
from privgen.errors import PrivgenError
from privgen.files import write_bytes
from privgen.watermark.embed import encode_canvas
from privgen.watermark.linear_code import measure_response, ridged, solve_code, stationary_covariance, zero_forcing


Photos = Sequence[NDArray[np.uint8]]
Attack = Callable[..., Tensor]

_FIRST_SCENE = 3 * 10**12  # scenes that no training run draws


@torch.no_grad()
def load_or_solve_code(
    path: Path,
    vae: Any,
    photos: Photos,
    n_bits: int,
    pilots: int,
    *,
    images: int = 6144,
    attack: Attack | None = None,
    ridge: float = 0.002,
) -> dict[str, Tensor]:
    """The codes from a file, or solved now: a few minutes.

    Args:
        path: a safetensors file; made when it is missing.
        vae: Diffusers' autoencoder.
        photos: as `load_photos` gives them; without any, the codes are for scenes.
        n_bits: of a message.
        pilots: see `Extractor`; they and the bits are at most as many as there are textures.
        images: scenes and photographs whose content is measured.
        attack: what a reader should be steady against, called as `attack(images, generator=[one for each])`;
            its repr says whether a file was made with it.
        ridge: see `solve_code`.

    Returns:
        "latent_patterns" and "token_patterns" (n_bits, d), each of unit squared pixel change; "latent_filters" and
        "token_filters" (n_bits + pilots, d), reading 1 from their patterns; "latent_offset" and
        "token_offset", what these read from unmarked images on average.

    Raises:
        ValueError: more bits and pilots than there are textures.
        PrivgenError: the file cannot be read or written, or was made for another autoencoder or with other settings.
    """
    wanted = n_bits + pilots
    if wanted > len(TEXTURES):
        raise ValueError(f"expected at most {len(TEXTURES)} bits and pilots, one for each texture, got {wanted}")
    fingerprint = weights_fingerprint(vae, [n_bits, pilots, images, ridge, len(photos), repr(attack)])
    if path.exists():
        return _load(path, fingerprint)
    content = _content(vae, photos, images, attack)
    response = measure_response(vae, content.examples)
    textures = texture_changes(vae, scenes=8)
    textures = textures / (textures.T @ response.energy @ textures).diagonal().sqrt()
    code = solve_code(content.covariance, response, wanted, excluded=textures, ridge=ridge)
    order = code.noise.argsort()  # the best patterns carry bits
    patterns, filters, noise = code.patterns[order], code.filters[order], code.noise[order]
    # Pilots stand for the bits' noise, so they are scaled to it.
    filters[n_bits:] *= (noise[:n_bits].square().mean().sqrt() / noise[n_bits:])[:, None]
    signals = torch.cat([textures, response.reading @ patterns.T], dim=1)
    token_filters = zero_forcing(ridged(content.scenes_covariance, ridge).double(), signals.double())[:wanted].float()
    solved = {
        "latent_patterns": patterns[:n_bits],
        "latent_filters": filters,
        "token_patterns": textures.T[:n_bits],
        "token_filters": token_filters,
        "latent_offset": filters @ content.mean,
        "token_offset": token_filters @ content.scenes_mean,
    }
    contiguous = {name: value.contiguous() for name, value in solved.items()}
    write_bytes(path, save(contiguous, metadata={FINGERPRINT: fingerprint}), overwrite=True)
    return solved


def _load(path: Path, fingerprint: str) -> dict[str, Tensor]:
    remedy = "delete it to have the codes solved again, or name another file in the recipe"
    try:
        with safe_open(path, "pt") as file:
            kept, names = (file.metadata() or {}).get(FINGERPRINT), list(file.keys())
            code = {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError) as error:
        raise PrivgenError(f"The codes in {path} cannot be read ({error}); {remedy}.") from error
    if kept != fingerprint:
        raise PrivgenError(f"The codes in {path} are another autoencoder's, or of other settings; {remedy}.")
    return code


@dataclass(frozen=True, eq=False)
class _Content:
    """What unmarked images hold: mean (d,) and covariance (d, d) of their latents, attacks included; examples."""

    mean: Tensor
    covariance: Tensor
    scenes_mean: Tensor
    scenes_covariance: Tensor
    examples: Tensor


def _content(vae: Any, photos: Photos, images: int, attack: Attack | None) -> _Content:
    kinds = [_scene] + [_crop, _view] * (len(photos) > 0)
    bar = tqdm(kinds, desc="image content", unit="kind")
    measured = [_measure(vae, photos, kind, images // len(kinds), attack) for kind in bar]
    means, covariances, examples = zip(*measured, strict=True)
    return _Content(
        mean=torch.stack(means).mean(0),
        covariance=torch.stack(covariances).mean(0),
        scenes_mean=means[0],
        scenes_covariance=covariances[0],
        examples=torch.cat(examples[:1] + examples[1:][-1:]),
    )


def _measure(
    vae: Any,
    photos: Photos,
    kind: Callable[[Photos, int], NDArray[np.float32]],
    images: int,
    attack: Attack | None,
    batch: int = 32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of one kind of images' latents, with what an attack adds to it, and an example."""
    latents, changes = [], []
    for first in range(0, images, batch):
        pixels = torch.from_numpy(np.stack([kind(photos, i) for i in range(first, first + batch)]))
        latents.append(encode_canvas(vae, pixels))
        # One image in four is enough for the attack's part, which is much the smaller one.
        if attack is not None and first % (4 * batch) == 0:
            attacked = attack(pixels, generator=[sample_generator(0, first + i) for i in range(batch)])
            changes.append((encode_canvas(vae, attacked) - latents[-1]).flatten(1))
    z = torch.cat(latents)
    covariance = torch.cov(z.flatten(1).T, correction=0)
    if kind is not _scene:
        covariance = (covariance + stationary_covariance(z)) / 2
    if changes:
        change = torch.cat(changes)
        covariance = covariance + change.T @ change / len(change)
    return z.mean(0).flatten(), covariance, pixels[:1]


def _scene(photos: Photos, index: int) -> NDArray[np.float32]:
    return draw(sample_spec(_FIRST_SCENE + index, textured=False)).pixels


def _crop(photos: Photos, index: int) -> NDArray[np.float32]:
    return random_crop(tuple(photos), 128, np.random.default_rng([1, index]))


def _view(photos: Photos, index: int) -> NDArray[np.float32]:
    return random_view(tuple(photos), 128, np.random.default_rng([2, index]))
