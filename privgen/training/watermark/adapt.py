"""Networks that write and read marks in the latents of any model, in closed form: no training.

The patterns are the best linear code of the model's autoencoder (`privgen.watermark.write.spectral_code`). The
extractor is the autoencoder's encoder with the code's filters behind it.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from privgen.attacks import JPEG
from privgen.attacks.base import BaseAttack
from privgen.data.photos import load_photos, random_crop, random_view
from privgen.diffusion.latents import encode
from privgen.errors import UsageError
from privgen.io.pixels import resize
from privgen.models.extractor import Extractor
from privgen.models.family import Canvas
from privgen.models.mappers import LatentMapper
from privgen.watermark.write.spectral_code import (
    SpectralCode,
    content_spectrum,
    measure_waves,
    solve_spectral_code,
)


PHOTOS = Path(__file__).parents[2] / "data" / "photos" / "train"
"""Photographs of which content is measured, if no others are given."""

_MEASURED = 256  # side in pixels at which an autoencoder's response is measured
_ATTACKED = 4  # every so many images are attacked, to measure what attacks change in latents
_RESIZED = 0.5


@dataclass(frozen=True)
class CodeSize:
    """How large a code is, and what it is solved from.

    Attributes:
        n_bits: bits of a message.
        pilots: see `privgen.models.extractor.Extractor`.
        images: parts of photographs whose content is measured; well above `n_bits`.
        examples: of these, how many the autoencoder's response is measured on.
        psnr: quality in dB of a marked image from which filters read -1 and 1, and that a pipeline writes.

    Raises:
        UsageError: a value out of its range.
    """

    n_bits: int = 48
    pilots: int = 64
    images: int = 256
    examples: int = 3
    psnr: float = 40.0

    def __post_init__(self) -> None:
        if not 8 <= self.n_bits <= 256:
            raise UsageError(f"expected 8 to 256 bits, got {self.n_bits}")
        if self.images < 2 * self.n_bits or self.examples < 1 or self.pilots < 1:
            raise UsageError(f"expected at least {2 * self.n_bits} images for {self.n_bits} bits, got {self.images}")


@dataclass(frozen=True, eq=False)
class Adapted:
    """The networks of a model.

    Attributes:
        extractor: reads marks.
        latent_mapper: writes them.
    """

    extractor: Extractor
    latent_mapper: LatentMapper = field(repr=False)


@torch.no_grad()
def adapt(vae: Any, size: int, photos: Path = PHOTOS, code: CodeSize | None = None) -> Adapted:
    """Make a mapper and an extractor for the latents of an autoencoder.

    Args:
        vae: Diffusers' `AutoencoderKL` or `AutoencoderTiny`, in float32.
        size: side in pixels of the images that the model draws.
        photos: folder of photographs whose content disturbs marks.
        code: how large.

    Raises:
        UsageError: the canvas is too small for so many bits.
        ValueError: the folder holds no photograph.
    """
    settings, canvas = code or CodeSize(), Canvas.of_vae(vae, size)
    pictures = load_photos(photos, shorter_side=max(size, 384))
    latents, changes = [], []
    for i, pixels in enumerate(
        tqdm(_parts(pictures, size, settings.images), "content", settings.images, unit="image")
    ):
        z = encode(vae, pixels.to(vae.device)).cpu()
        latents.append(z)
        if i % _ATTACKED == 0:
            changes += [encode(vae, attacked.to(vae.device)).cpu() - z for attacked in _attacked(pixels)]
    z = torch.cat(latents)
    spectrum = content_spectrum(z) + _power(torch.cat(changes))
    examples = torch.cat(list(_parts(pictures, min(size, _MEASURED), settings.examples)))
    response = measure_waves(vae, examples.to(vae.device))
    try:
        found = solve_spectral_code(spectrum, response, canvas.latents, settings.n_bits + settings.pilots)
    except ValueError as error:
        raise UsageError(f"Images of {size} pixels are too small for {settings.n_bits} bits.") from error
    patterns, filters = _mixed(found, settings)
    return _networks(vae, size, settings, patterns, filters, z)


def _parts(pictures: tuple[Any, ...], size: int, count: int) -> Iterator[Tensor]:
    """Squares of photographs, (1, 3, size, size) each: parts of them, and whole ones as an extractor sees them."""
    for i in range(count):
        part = random_crop if i % 2 else random_view
        yield torch.from_numpy(part(pictures, size, np.random.default_rng([3, i])))[None]


def _attacked(pixels: Tensor) -> Iterator[Tensor]:
    jpeg: BaseAttack = JPEG(50)
    yield jpeg(pixels)
    side = pixels.shape[-1]
    yield resize(resize(pixels, (round(_RESIZED * side),) * 2), (side, side)).clamp(0, 1)


def _power(changes: Tensor) -> Tensor:
    """The spectrum of changes, which are as often there as their opposite."""
    return content_spectrum(torch.cat([changes, -changes]))


def _mixed(code: SpectralCode, settings: CodeSize) -> tuple[Tensor, Tensor]:
    """Patterns of the bits, mixed so that all are read equally well; and filters of bits and pilots."""
    n, count = settings.n_bits, settings.n_bits + settings.pilots
    rotation = torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(0))).Q
    patterns = (rotation @ code.patterns[:n].flatten(1)).view_as(code.patterns[:n])
    bits = rotation @ code.filters[:n].flatten(1)
    noise = code.noise[:n].square().mean().sqrt()
    pilots = code.filters[n:count].flatten(1) * (noise / code.noise[n:count])[:, None]
    return patterns, torch.cat([bits, pilots])


def _networks(vae: Any, size: int, settings: CodeSize, patterns: Tensor, filters: Tensor, latents: Tensor) -> Adapted:
    # A sum of n patterns, each of squared pixel change a^2, changes 3 size^2 values by n a^2.
    amplitude = 10 ** (-settings.psnr / 20) * (3 * size**2 / settings.n_bits) ** 0.5
    rms = float(patterns.square().sum(0).mean().sqrt())
    channels, side = patterns.shape[1:3]
    mapper = LatentMapper(settings.n_bits, channels, side, strength=amplitude * rms)
    mapper.patterns.copy_(patterns / rms)
    extractor = Extractor.from_vae(vae, settings.n_bits, settings.pilots, size=size).float().eval().cpu()
    extractor.filters.weight.copy_(filters / amplitude)
    extractor.filters.bias.copy_(-(filters / amplitude) @ latents.mean(0).flatten())
    extractor.reset_whitening()
    read = []
    for part in latents.split(32):
        bits, variance = extractor.filter_logits(part)
        read.append(2 * bits / variance)
    extractor.fit_whitening(torch.cat(read))
    return Adapted(extractor.requires_grad_(False), mapper.requires_grad_(False).eval())
