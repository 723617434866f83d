"""Networks that write and read marks in the latents of any model, without training.

Each bit has a pattern of noise over the latents. How loud it is in which mix of channels, and in which ring of
frequencies, follows what is measured on photographs (`measure`): how much of the decoder's answer is the same in all
images and outlasts JPEG, what it costs in pixels, and what photographs have there of themselves. The reader is
`privgen.models.latent_reader`.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import conv_transpose2d, pad, pixel_unshuffle, unfold

from privgen.attacks import JPEG
from privgen.data.photos import load_photos, random_crop
from privgen.diffusion.latents import decode, encode
from privgen.errors import UsageError
from privgen.models.family import Canvas
from privgen.models.latent_reader import (
    FORMAT,
    REACH,
    RINGS,
    LatentReader,
    answered,
    by_ring,
    levelled,
    ring_covariance,
)
from privgen.models.mappers import LatentMapper, signs, tiled


PHOTOS = Path(__file__).parents[2] / "data" / "photos" / "train"
"""Photographs on which the strength of marks is measured, if no others are given."""

_QUALITY = 40.0  # dB of the noise that is answered, as JPEG gets it
_PROBE = 0.1  # RMS of the noise that is answered, over that of the latents
_SIDE = 256  # pixels of the squares that are measured; the figures do not depend on it
_TRIED, _ROUNDS = 0.1, 2  # RMS of the first residual whose quality is measured, in units of scaled latents
_RIDGE = 1e-3  # of the mean of a matrix's diagonal
_JPEG = JPEG(50)
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

    extractor: LatentReader
    latent_mapper: LatentMapper = field(repr=False)


@dataclass(frozen=True, eq=False)
class DecoderAnswers:
    """How a decoder answers noise in the latents of photographs. C are the channels of the latents.

    Attributes:
        answers: (C, 3, H, W), what one latent changes in pixels on average.
        energy: (rings, C, C), in pixels, of noise in the latents: the mean of J^T J, J being the decoder's Jacobian.
        signal: (rings, C, C), from noise in the latents to what is read of it after JPEG.
        noise: (rings, C, C), covariance of what is read of photographs without a mark, after JPEG.
    """

    answers: Tensor
    energy: Tensor
    signal: Tensor
    noise: Tensor

    def code(self) -> tuple[Tensor, Tensor]:
        """The best way to write and to read white noise: two times (rings, C, C), to be multiplied with channels.

        In each ring, the mixes of channels are those of the generalised eigenproblem between what is read, in units
        of the noise, and the energy that it takes in pixels. The more a mix yields, the more energy it gets. The
        second result is to be multiplied with the inverse covariance of what is read.
        """
        root = torch.linalg.inv(torch.linalg.cholesky(self.energy)).mT  # root root^T = energy^-1
        yields = root.mT @ self.signal.mT @ torch.linalg.solve(self.noise, self.signal) @ root
        gains, mixes = torch.linalg.eigh((yields + yields.mT) / 2)
        writing = root @ mixes * gains.clamp(min=0)[:, None]
        return writing, writing.mT @ self.signal.mT


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
    noise = noise_patterns(settings.n_bits, canvas)
    squares = torch.cat(list(_squares(photos, _SIDE, settings.examples)))
    measured = measure(vae, squares, canvas.patch)
    writing, reading = measured.code()
    reader = LatentReader(settings.n_bits, canvas.size, canvas.patch, canvas.channels, FORMAT)
    reader.answers.copy_(measured.answers)
    reader.noise.copy_(measured.noise)
    reader.weights.copy_(reading / reading.abs().max())
    reader.patterns.copy_(noise)
    residuals = by_ring(noise, writing)
    strength = _strength(vae, residuals, squares, settings.psnr)
    mapper = LatentMapper(settings.n_bits, canvas.channels, canvas.latents, strength=strength, tiled=True)
    mapper.patterns.copy_(residuals / residuals.square().mean().sqrt())
    return Adapted(reader.eval().requires_grad_(False), mapper.eval().requires_grad_(False))


def noise_patterns(n_bits: int, canvas: Canvas) -> Tensor:
    """Patterns of white noise without slow waves, orthogonal, of RMS 1 over all: (n_bits, C, h, w)."""
    side, generator = canvas.latents, torch.Generator().manual_seed(0)
    noise = torch.randn(n_bits, canvas.channels, side, side, generator=generator)
    fast = by_ring(noise, torch.eye(canvas.channels).expand(len(RINGS) - 1, -1, -1))
    orthogonal = torch.linalg.qr(fast.flatten(1).T.double()).Q.T.float()
    return (orthogonal / orthogonal.square().mean().sqrt()).view_as(noise)


@torch.no_grad()
def measure(vae: Any, squares: Tensor, patch: int) -> DecoderAnswers:
    """Measure how a decoder answers noise in the latents of photographs, at 40 dB.

    Args:
        vae: see `adapt`.
        squares: (B, 3, S, S) in [0, 1].
        patch: side in pixels of what one latent shows.
    """
    generator = torch.Generator().manual_seed(0)
    noises, changes, samples = [], [], []
    for square in squares[:, None]:
        z = encode(vae, square)
        noise = _PROBE * z.std() * torch.randn(z.shape, generator=generator).to(z)
        change = decode(vae, z + noise) - decode(vae, z)
        loud = 10 ** (-_QUALITY / 20) / change.square().mean().sqrt()
        noises.append((loud * noise).cpu())
        changes.append((loud * change).cpu())
        samples.append(_pixel_energy(vae, z, generator).cpu())
    noise, change, sample = (torch.cat(parts) for parts in (noises, changes, samples))
    answers = _mean_answers(noise, change, patch)

    def seen(pixels: Tensor) -> Tensor:
        return answered(levelled(pixels, patch), answers, patch)

    marked, plain = (squares + change).clamp(0, 1), _coded(squares)
    difference, kept = seen(marked) - seen(squares), seen(_coded(marked)) - seen(plain)
    outlasts = _sizes(ring_covariance(kept, difference)) / _sizes(ring_covariance(difference, difference))
    mean_change = conv_transpose2d(noise, answers, stride=patch, padding=(REACH // 2) * patch)
    expected = answered(levelled(squares, patch, mean_change), answers, patch)
    signal = ring_covariance(expected, noise) / _sizes(ring_covariance(noise, noise)) * outlasts.clamp(0.01, 1)
    energy, unmarked = ring_covariance(sample, sample), ring_covariance(seen(plain), seen(plain))
    return DecoderAnswers(answers, _ridged(energy), signal, _ridged(unmarked))


def _squares(folder: Path, size: int, count: int) -> Iterator[Tensor]:
    pictures = load_photos(folder, shorter_side=max(size, 384))
    for i in range(count):
        yield torch.from_numpy(random_crop(pictures, size, np.random.default_rng([3, i])))[None]


def _pixel_energy(vae: Any, z: Tensor, generator: torch.Generator) -> Tensor:
    """A sample whose covariance is that of J^T J, where J is the decoder's Jacobian (Hutchinson's estimator)."""
    with torch.enable_grad():
        point = z.clone().requires_grad_()
        pixels = decode(vae, point)
        (sample,) = torch.autograd.grad((pixels * torch.randn(pixels.shape, generator=generator).to(z)).sum(), point)
    return sample


def _mean_answers(noise: Tensor, change: Tensor, patch: int) -> Tensor:
    """The answer to one latent, by least squares: (C, 3, H, W), where H and W are `REACH` latents."""
    around = unfold(pad(noise, (REACH // 2,) * 4), REACH).mT.flatten(0, 1)
    pixels = pixel_unshuffle(change, patch).permute(0, 2, 3, 1).flatten(0, 2)
    gram = around.T @ around
    found = torch.linalg.solve(gram + _RIDGE * gram.diagonal().mean() * torch.eye(len(gram)), around.T @ pixels)
    # Rows are a latent's place seen from its pixels; seen from the latent, its pixels lie on the other side.
    kernels = found.view(noise.shape[1], REACH, REACH, 3, patch, patch).flip(1, 2)
    return kernels.permute(0, 3, 1, 4, 2, 5).reshape(noise.shape[1], 3, REACH * patch, REACH * patch)


def _coded(pixels: Tensor) -> Tensor:
    return torch.stack([_JPEG(image) for image in pixels])


def _sizes(matrices: Tensor) -> Tensor:
    return matrices.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]


def _ridged(matrices: Tensor) -> Tensor:
    return matrices + _RIDGE * _sizes(matrices) * torch.eye(matrices.shape[-1])


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
