"""Where the extractor's training starts: the best linear code for this autoencoder, scenes and photographs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from privgen.data.photos import random_crop, random_view
from privgen.data.scenes import draw, sample_spec
from privgen.diffusion.latents import encode
from privgen.io.fingerprints import weights_fingerprint
from privgen.io.tensor_cache import load_or_make
from privgen.training.loop import sample_generator
from privgen.watermark.write.linear_code import (
    LinearCode,
    Response,
    low_frequencies,
    measure_response,
    nearest_covariance,
    ridged,
    solve_code,
    stationary_covariance,
    zero_forcing,
)


Photos = Sequence[NDArray[np.uint8]]
Attack = Callable[..., Tensor]

_VERSION = 3  # of how codes are solved
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
    cycles: int = 5,
    attack: Attack | None = None,
    ridge: float = 0.002,
) -> dict[str, Tensor]:
    """The code from a file, or solved now: a few minutes.

    Args:
        path: a safetensors file; made when it is missing.
        vae: Diffusers' autoencoder.
        photos: as `load_photos` gives them; without any, the code is for scenes.
        n_bits: of a message.
        pilots: see `Extractor`.
        images: scenes and photographs whose content is measured.
        cycles: of the patterns across the canvas, at most; mini has learnt to write smooth ones by text.
        attack: what a reader should be steady against, called as `attack(images, generator=[one for each])`;
            its repr says whether a file was made with it.
        ridge: see `solve_code`.

    Returns:
        "patterns" (n_bits, d), each of unit squared pixel change; "filters" (n_bits + pilots, d), reading 1 from their
        patterns; "offset", what these read from unmarked images on average.

    Raises:
        PrivgenError: the file cannot be read or written, or was made for another autoencoder or with other settings.
    """
    fingerprint = weights_fingerprint(
        vae, [_VERSION, n_bits, pilots, images, cycles, ridge, len(photos), repr(attack)]
    )

    def solve() -> dict[str, Tensor]:
        content = _content(vae, photos, images, attack)
        response = measure_response(vae, content.examples)
        channels, height, width = content.shape
        smooth = low_frequencies(channels, height, width, cycles)
        code = solve_code(content.covariance, response, n_bits + pilots, span=smooth, ridge=ridge)
        patterns, filters = mixed(code, content.covariance, response, n_bits, ridge)
        return {"patterns": patterns, "filters": filters, "offset": filters @ content.mean}

    return load_or_make(path, fingerprint, solve, "a linear code")


def mixed(
    code: LinearCode, covariance: Tensor, response: Response, n_bits: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """A code whose bits are all read equally well, because each is a mixture of all the best patterns.

    Args:
        code: at least n_bits patterns; the quietest carry bits, the others are pilots.
        covariance: that it was solved for.
        response: that it was solved for.
        n_bits: of a message.
        ridge: that it was solved with.

    Returns:
        Patterns of the bits (n_bits, d), and filters of bits and pilots, (n_bits + pilots, d).
    """
    order = code.noise.argsort()
    rotation = torch.linalg.qr(torch.randn(n_bits, n_bits, generator=sample_generator(0, 0))).Q
    patterns = torch.cat([rotation @ code.patterns[order][:n_bits], code.patterns[order][n_bits:]])
    noise = ridged(covariance.double(), ridge)
    filters = zero_forcing(noise, (response.reading @ patterns.T).double()).float()
    heard = (filters @ covariance @ filters.T).diagonal().sqrt()
    # Pilots stand for the bits' noise, so they are scaled to it.
    filters[n_bits:] *= (heard[:n_bits].square().mean().sqrt() / heard[n_bits:])[:, None]
    return patterns[:n_bits], filters


@dataclass(frozen=True, eq=False)
class _Content:
    """What unmarked images hold.

    Attributes:
        mean: (d,) of their latents.
        covariance: (d, d) of these, what attacks change in them included.
        examples: (B, 3, S, S), some of the images.
        shape: (C, h, w) of the latents; d is its product.
    """

    mean: Tensor
    covariance: Tensor
    examples: Tensor
    shape: torch.Size


def _content(vae: Any, photos: Photos, images: int, attack: Attack | None) -> _Content:
    kinds = [_scene] + [_crop, _view] * (len(photos) > 0)
    bar = tqdm(kinds, desc="image content", unit="kind")
    measured = [_measure(vae, photos, kind, images // len(kinds), attack) for kind in bar]
    means, covariances, examples = zip(*measured, strict=True)
    mean = torch.stack(means).mean(0)
    return _Content(mean.flatten(), torch.stack(covariances).mean(0), torch.cat(examples), mean.shape)


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
        latents.append(encode(vae, pixels))
        # One image in four is enough for the attack's part, which is much the smaller one.
        if attack is not None and first % (4 * batch) == 0:
            attacked = attack(pixels, generator=[sample_generator(0, first + i) for i in range(batch)])
            changes.append((encode(vae, attacked) - latents[-1]).flatten(1))
    z = torch.cat(latents)
    # Half of it as if every place were alike: for images other than these, and so that marks do not gather where
    # these hold least, which is where one would see them and where a crop would take them away.
    covariance = (torch.cov(z.flatten(1).T, correction=0) + stationary_covariance(z)) / 2
    if changes:
        change = torch.cat(changes)
        covariance = covariance + change.T @ change / len(change)
    return z.mean(0), nearest_covariance(covariance), pixels[:1]


def _scene(photos: Photos, index: int) -> NDArray[np.float32]:
    return draw(sample_spec(_FIRST_SCENE + index, textured=False)).pixels


def _crop(photos: Photos, index: int) -> NDArray[np.float32]:
    return random_crop(tuple(photos), 128, np.random.default_rng([1, index]))


def _view(photos: Photos, index: int) -> NDArray[np.float32]:
    return random_view(tuple(photos), 128, np.random.default_rng([2, index]))
