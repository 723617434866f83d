"""Networks that write and read marks in the latents of any model, without training.

Each bit has a pattern of noise over the latents. There are two readers, and which of them reads better was measured:

- Latents of few channels: the patterns are white, and `privgen.models.latent_reader` encodes an image, levels its
  content out, and correlates.
- Latents of many channels: `privgen.models.answer_reader` looks for the part of the decoder's answer that is the same
  in all images. How loud a pattern is in which mix of channels and ring of frequencies follows what is measured on
  photographs (`privgen.training.watermark.decoder_answers`): how much of that part outlasts JPEG, what it costs in
  pixels, and what photographs have there of themselves.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from privgen.data.photos import load_photos, random_crop
from privgen.diffusion.latents import decode, encode
from privgen.errors import UsageError
from privgen.models.answer_reader import RINGS, AnswerReader, by_ring
from privgen.models.family import Canvas
from privgen.models.latent_reader import LatentReader
from privgen.models.mappers import LatentMapper, signs, tiled
from privgen.training.watermark.decoder_answers import measure


PHOTOS = Path(__file__).parents[2] / "data" / "photos" / "train"
"""Photographs on which the decoder is measured, if no others are given."""

MANY_CHANNELS = 16
"""From so many on, marks are read by the decoder's answers. Measured: better with 16, worse with 4 and with 8."""

_SIDE = 256  # pixels of the squares that are measured; smaller ones would be too few latents
_TRIED, _ROUNDS = 0.1, 3  # RMS of the first residual whose quality is measured, in units of scaled latents
_SLOWEST = 0.05  # cycles a latent; content drowns slower waves
_VALUES_A_BIT = 32  # fewest latent values for each bit


@dataclass(frozen=True)
class CodeSize:
    """How large a code is, and how loud a pipeline writes it.

    Attributes:
        n_bits: bits of a message, 8 to 256.
        psnr: quality in dB that generated images have on average against the same without the mark.
        examples: photographs on which the decoder is measured.
        size: side in pixels of a square with as many pixels as the canvas of a photograph; None is that of the
            model's images.

    Raises:
        UsageError: a value out of its range.
    """

    n_bits: int = 48
    psnr: float = 40.0
    examples: int = 8
    size: int | None = None

    def __post_init__(self) -> None:
        if not 8 <= self.n_bits <= 256:
            raise UsageError(f"expected 8 to 256 bits, got {self.n_bits}")
        if not self.psnr > 0 or self.examples < 1:
            raise UsageError(f"expected a PSNR above 0 and at least one example, got {self.psnr} and {self.examples}")
        if self.size is not None and self.size < 64:
            raise UsageError(f"expected a size of at least 64 pixels, got {self.size}")


@dataclass(frozen=True, eq=False)
class Adapted:
    """The networks of a model.

    Attributes:
        extractor: reads marks.
        latent_mapper: writes them.
    """

    extractor: LatentReader | AnswerReader
    latent_mapper: LatentMapper = field(repr=False)


@torch.no_grad()
def adapt(vae: Any, size: int, photos: Path = PHOTOS, code: CodeSize | None = None) -> Adapted:
    """Make a mapper and a reader for the latents of an autoencoder.

    Args:
        vae: Diffusers' `AutoencoderKL` or `AutoencoderTiny`, in float32.
        size: side in pixels of the images that the model draws.
        photos: folder of photographs on which the decoder is measured.
        code: how large; its `size` goes before `size`.

    Raises:
        UsageError: the images are too small for so many bits.
        ValueError: the folder holds no photograph.
    """
    settings = code or CodeSize()
    canvas = Canvas.of_vae(vae, settings.size or size)
    if canvas.values < _VALUES_A_BIT * settings.n_bits:
        raise UsageError(f"Images of {canvas.size} pixels are too small for {settings.n_bits} bits.")
    squares = torch.cat(list(_squares(photos, _SIDE, settings.examples)))
    many = canvas.channels >= MANY_CHANNELS
    noise = noise_patterns(settings.n_bits, canvas, slowest=RINGS[0] if many else _SLOWEST)
    reader, residuals = (
        _by_answers(vae, noise, canvas, squares)
        if many
        else (LatentReader.from_vae(vae, noise, size=canvas.size), noise)
    )
    strength = _strength(vae, residuals, squares, settings.psnr)
    mapper = LatentMapper(settings.n_bits, canvas.channels, canvas.latents, strength=strength, tiled=many)
    mapper.patterns.copy_(residuals / residuals.square().mean().sqrt())
    return Adapted(reader.eval().requires_grad_(False), mapper.eval().requires_grad_(False))


def noise_patterns(n_bits: int, canvas: Canvas, slowest: float = _SLOWEST) -> Tensor:
    """Patterns of white noise without slow waves, orthogonal, of RMS 1 over all: (n_bits, C, h, w)."""
    side, generator = canvas.latents, torch.Generator().manual_seed(0)
    noise = torch.randn(n_bits, canvas.channels, side, side, generator=generator)
    frequencies = torch.hypot(torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None])
    fast = torch.fft.irfft2(torch.fft.rfft2(noise) * (frequencies >= slowest), s=(side, side))
    orthogonal = torch.linalg.qr(fast.flatten(1).T.double()).Q.T.float()
    return (orthogonal / orthogonal.square().mean().sqrt()).view_as(noise)


def _by_answers(vae: Any, noise: Tensor, canvas: Canvas, squares: Tensor) -> tuple[AnswerReader, Tensor]:
    """The reader, and what each bit adds to latents."""
    measured = measure(vae, squares, canvas.patch)
    writing, reading = measured.code()
    reader = AnswerReader(len(noise), canvas.size, canvas.patch, canvas.channels)
    reader.answers.copy_(measured.answers)
    reader.noise.copy_(measured.noise)
    reader.weights.copy_(reading / reading.abs().max())
    reader.patterns.copy_(noise)
    return reader, by_ring(noise, writing)


def _squares(folder: Path, size: int, count: int) -> Iterator[Tensor]:
    pictures = load_photos(folder, shorter_side=max(size, 384))
    for i in range(count):
        yield torch.from_numpy(random_crop(pictures, size, np.random.default_rng([3, i])))[None]


def _strength(vae: Any, residuals: Tensor, squares: Tensor, psnr: float) -> float:
    """The RMS of residuals whose marks have a PSNR, on average over photographs."""
    plain = [encode(vae, square.to(vae.device)) for square in squares[:, None]]
    unmarked = [decode(vae, z) for z in plain]
    marks = []
    for i, z in enumerate(plain):
        bits = torch.randint(0, 2, (len(residuals),), generator=torch.Generator().manual_seed(i))
        mark = torch.einsum("n,nchw->chw", signs(bits), residuals)
        marks.append(tiled(mark / mark.square().mean().sqrt(), *z.shape[-2:])[None].to(z))
    strength = _TRIED
    for _ in range(_ROUNDS):  # decoders are not linear, so the next guess is nearer
        changes = [
            decode(vae, z + strength * mark) - image for z, image, mark in zip(plain, unmarked, marks, strict=True)
        ]
        found = torch.stack([change.square().mean().log10() for change in changes]).mean()
        strength *= float(10 ** (-psnr / 20 - found / 2))
    return strength
