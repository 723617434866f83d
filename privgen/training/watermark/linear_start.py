"""The linear code that the training of an extractor starts from: the best one for an autoencoder and its images."""

from collections.abc import Callable
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privgen.attacks.base import BaseAttack
from privgen.data.photos import random_crop, random_view
from privgen.data.scenes import draw, sample_spec
from privgen.diffusion.latents import encode
from privgen.io.fingerprints import weights_fingerprint
from privgen.io.progress import Bar
from privgen.io.tensor_cache import load_or_make
from privgen.models.family import Canvas
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


Photos = tuple[NDArray[np.uint8], ...]
"""Photographs (H, W, 3), see `privgen.data.photos.load_photos`."""

_VERSION = 3  # of how codes are solved
_FIRST_SCENE = 3 * 10**12  # the first of the scenes that no training run draws


@dataclass(frozen=True)
class CodeSettings:
    """What a linear code is solved for.

    Attributes:
        n_bits: bits of a message.
        pilots: number of filters that measure the noise, see `privgen.models.extractor.Extractor`.
        images: number of scenes and photographs whose content is measured.
        cycles: most waves of a pattern across the canvas. mini has learnt to write smooth patterns by text.
        ridge: see `privgen.watermark.write.linear_code.solve_code`.
    """

    n_bits: int
    pilots: int
    images: int = 6144
    cycles: int = 5
    ridge: float = 0.002


@torch.no_grad()
def load_or_solve_code(
    path: Path, vae: Any, photos: Photos, settings: CodeSettings, attack: BaseAttack | None = None
) -> dict[str, Tensor]:
    """Load a code from a file, or solve it now, which takes a few minutes.

    Args:
        path: a safetensors file; made if it is missing.
        vae: Diffusers' autoencoder.
        photos: photographs whose content is measured; without any, the code is for scenes alone.
        settings: what the code is solved for.
        attack: that the code should withstand. Its repr counts in the fingerprint of the file.

    Returns:
        "patterns" (n_bits, d), each of squared pixel change 1; "filters" (n_bits + pilots, d), each of which reads 1
        from its pattern; and "offset" (n_bits + pilots,), what they read from unmarked images on average.

    Raises:
        PrivgenError: the file cannot be read or written, or was made for another autoencoder or with other settings.
    """
    made_of = [_VERSION, Canvas.of_vae(vae).size, *astuple(settings), len(photos), repr(attack)]
    fingerprint = weights_fingerprint(vae, made_of)
    return load_or_make(path, fingerprint, lambda: _solve(vae, photos, settings, attack), "a linear code")


def _solve(vae: Any, photos: Photos, settings: CodeSettings, attack: BaseAttack | None) -> dict[str, Tensor]:
    content = _content(vae, photos, settings.images, attack)
    response = measure_response(vae, content.examples)
    channels, height, width = content.shape
    smooth = low_frequencies(channels, height, width, settings.cycles)
    n_filters, ridge = settings.n_bits + settings.pilots, settings.ridge
    code = solve_code(content.covariance, response, n_filters, span=smooth, ridge=ridge)
    patterns, filters = mixed(code, content.covariance, response, settings.n_bits, ridge)
    return {"patterns": patterns, "filters": filters, "offset": filters @ content.mean}


def mixed(
    code: LinearCode, covariance: Tensor, response: Response, n_bits: int, ridge: float
) -> tuple[Tensor, Tensor]:
    """Mix the best patterns of a code, so that all bits are read equally well.

    Args:
        code: at least n_bits patterns. Those with the least noise carry bits, the others become pilots.
        covariance: for which the code was solved.
        response: for which the code was solved.
        n_bits: bits of a message.
        ridge: with which the code was solved.

    Returns:
        Patterns of the bits (n_bits, d), and filters of bits and pilots (n_bits + pilots, d).
    """
    order = code.noise.argsort()
    rotation = torch.linalg.qr(torch.randn(n_bits, n_bits, generator=sample_generator(0, 0))).Q
    patterns = torch.cat([rotation @ code.patterns[order][:n_bits], code.patterns[order][n_bits:]])
    noise = ridged(covariance.double(), ridge)
    filters = zero_forcing(noise, (response.reading @ patterns.T).double()).float()
    heard = (filters @ covariance @ filters.T).diagonal().sqrt()
    # Pilots measure the noise of the bits, so they are scaled to it.
    filters[n_bits:] *= (heard[:n_bits].square().mean().sqrt() / heard[n_bits:])[:, None]
    return patterns[:n_bits], filters


@dataclass(frozen=True, eq=False)
class _Content:
    """The content of unmarked images, measured.

    Attributes:
        mean: (d,), of their latents.
        covariance: (d, d), of their latents, and of the changes by attacks.
        examples: (B, 3, S, S), some of the images.
        shape: (C, h, w) of the latents, whose product is d.
    """

    mean: Tensor
    covariance: Tensor
    examples: Tensor
    shape: torch.Size


def _content(vae: Any, photos: Photos, images: int, attack: BaseAttack | None) -> _Content:
    kinds = [_scene] + [_crop, _view] * (len(photos) > 0)
    measured = [
        _measure(vae, photos, kind, images // len(kinds), attack)
        for kind in Bar(kinds, desc="image content", unit="kind")
    ]
    means, covariances, examples = zip(*measured, strict=True)
    mean = torch.stack(means).mean(0)
    return _Content(mean.flatten(), torch.stack(covariances).mean(0), torch.cat(examples), mean.shape)


def _measure(
    vae: Any,
    photos: Photos,
    kind: Callable[[Photos, int, int], NDArray[np.float32]],
    images: int,
    attack: BaseAttack | None,
    batch: int = 32,
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and covariance of the latents of one kind of images, and an example of it."""
    size = Canvas.of_vae(vae).size
    latents, changes = [], []
    for first in range(0, images, batch):
        pixels = torch.from_numpy(np.stack([kind(photos, size, i) for i in range(first, first + batch)]))
        latents.append(encode(vae, pixels))
        # For the changes by the attack, which are much smaller, one image in four is enough.
        if attack is not None and first % (4 * batch) == 0:
            attacked = attack(pixels, generator=[sample_generator(0, first + i) for i in range(batch)])
            changes.append((encode(vae, attacked) - latents[-1]).flatten(1))
    z = torch.cat(latents)
    # Half of the covariance is that of places that are all alike. It holds for other images too, and keeps marks from
    # gathering where these images have least content: there one would see them, and a crop would remove them.
    covariance = (torch.cov(z.flatten(1).T, correction=0) + stationary_covariance(z)) / 2
    if changes:
        change = torch.cat(changes)
        covariance = covariance + change.T @ change / len(change)
    return z.mean(0), nearest_covariance(covariance), pixels[:1]


def _scene(photos: Photos, size: int, index: int) -> NDArray[np.float32]:
    return draw(sample_spec(_FIRST_SCENE + index, textured=False), size).pixels


def _crop(photos: Photos, size: int, index: int) -> NDArray[np.float32]:
    return random_crop(photos, size, np.random.default_rng([1, index]))


def _view(photos: Photos, size: int, index: int) -> NDArray[np.float32]:
    return random_view(photos, size, np.random.default_rng([2, index]))
