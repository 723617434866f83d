"""The best linear code for marks in the latents of any autoencoder, wave by wave.

`privgen.watermark.write.linear_code` solves for patterns among all latent values at once, which takes matrices that no
memory holds for the latents of large images. If an autoencoder treats all places alike, waves do not mix: the wave k
in the latents (C numbers, one for each channel) changes the pixels by an energy r' G(k) r, comes back from the encoder
as A(k) r, and is disturbed by image content of covariance S(k). So the same problem splits into one of C x C for each
wave: the best directions are the leading generalised eigenvectors of A' S^-1 A against G (Fisher's discriminant;
S. Kay, Fundamentals of Statistical Signal Processing II, chapter 4). G and A depend on little but the length of the
wave, so they are measured at a few lengths.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from privgen.diffusion.latents import decode, encode


LENGTHS = (0.03, 0.0625, 0.125, 0.1875, 0.25)
"""Frequencies at which an autoencoder is measured, in cycles a latent. No pattern has faster waves: what is left of
those after encoding differs from image to image, and resizing and JPEG take them away."""

_RIDGE = 0.01  # added to the diagonals of S and G, as a fraction of their mean


@dataclass(frozen=True, eq=False)
class WaveResponse:
    """What waves in the latents do, at each of `LENGTHS`.

    Attributes:
        energy: G, (lengths, C, C): a wave whose channels have the directions r, and whose squares sum to r' r over
            the latents, changes the pixels, which are in [0, 1], by squares that sum to r' G r.
        reading: A, (lengths, C, C): the same wave comes back from the encoder with the directions A r.
    """

    energy: Tensor
    reading: Tensor

    def at(self, frequencies: Tensor) -> tuple[Tensor, Tensor]:
        """Energy and reading, (N, C, C) each, at frequencies (N,) in cycles a latent."""
        known = torch.tensor(LENGTHS, dtype=frequencies.dtype)
        upper = torch.searchsorted(known, frequencies).clamp(1, len(known) - 1)
        low, high = known[upper - 1], known[upper]
        weight = ((frequencies - low) / (high - low)).clamp(0, 1)[:, None, None]
        return tuple(  # type: ignore[return-value]
            matrices[upper - 1].lerp(matrices[upper], weight) for matrices in (self.energy, self.reading)
        )


@dataclass(frozen=True, eq=False)
class SpectralCode:
    """Patterns and filters, best first.

    Attributes:
        patterns: (n, C, h, w), each of a squared pixel change of 1.
        filters: (n, C, h, w); filter i reads 1 from pattern i, and 0 from the others as far as waves do not mix.
        noise: (n,), standard deviation of each filter's output on unmarked images.
    """

    patterns: Tensor
    filters: Tensor
    noise: Tensor


@torch.no_grad()
def measure_waves(vae: Any, canvases: Tensor, *, step: float = 0.5) -> WaveResponse:
    """Measure what waves in the latents of images do, one channel at a time.

    Args:
        vae: Diffusers' autoencoder.
        canvases: (B, 3, S, S) in [0, 1]; the response is averaged over them. Square, small ones will do: 256 pixels.
        step: amplitude of the waves, in units of the latents' standard deviation.
    """
    z = encode(vae, canvases)
    plain = decode(vae, z)
    count, channels, height, width = z.shape
    amplitude = step * float(z.std())
    energy, reading = (torch.zeros(len(LENGTHS), channels, channels, dtype=torch.float64) for _ in range(2))
    for i in tqdm(range(len(LENGTHS)), desc="response to waves", unit="length"):
        directions = _directions(LENGTHS[i], height, width)
        for rows, columns in directions:
            wave = _wave(rows, columns, height, width).to(z)
            changes = []
            for channel in range(channels):
                added = torch.zeros_like(z)
                added[:, channel] = amplitude * wave
                change = decode(vae, z + added) - plain
                changes.append(change.flatten().cpu() / amplitude)
                heard = encode(vae, canvases.to(change) + change) - z
                # The amplitude of the same wave in each channel.
                found = 2 * (heard * wave).mean(dim=(0, 2, 3)) / amplitude
                reading[i, :, channel] += found.double().cpu() / len(directions)
            jacobian = torch.stack(changes).double()
            energy[i] += jacobian @ jacobian.T / (count * height * width / 2) / len(directions)
    return WaveResponse(energy, reading)


def content_spectrum(latents: Tensor) -> Tensor:
    """The covariance S of each wave's channels over images, as they are and blurred over neighbouring waves.

    Args:
        latents: (N, C, h, w), of unmarked images, or of what attacks change in them.

    Returns:
        (h, w // 2 + 1, C, C) float64, symmetric.
    """
    spectrum = torch.fft.rfft2(latents.double() - latents.double().mean(0), norm="ortho")
    _, _, height, half = spectrum.shape
    found = torch.einsum("ncyx,ndyx->yxcd", spectrum, spectrum.conj()).real / len(latents)
    # A wave and its mirror image are as frequent as each other in photographs.
    mirrored = (found + found.roll(-1, 0).flip(0)) / 2
    radius = _frequencies(height, latents.shape[-1]) * height
    rings = radius.round().long().flatten()
    flat = mirrored.reshape(height * half, -1)
    sums = torch.zeros(int(rings.max()) + 1, flat.shape[1], dtype=flat.dtype).index_add_(0, rings, flat)
    ring = (sums / rings.bincount()[:, None])[rings].reshape(mirrored.shape)
    return (mirrored + ring) / 2


def solve_spectral_code(spectrum: Tensor, response: WaveResponse, width: int, count: int) -> SpectralCode:
    """Find the patterns that are read best at a given image quality, and their filters.

    Args:
        spectrum: S, (h, w // 2 + 1, C, C); see `content_spectrum`.
        response: of the autoencoder.
        width: w.
        count: how many patterns.

    Raises:
        ValueError: there are fewer patterns.
    """
    height, half, channels, _ = spectrum.shape
    # Waves with a mirror image of their own; each of them gives a sine and a cosine.
    ky, kx = torch.meshgrid(torch.arange(height), torch.arange(half), indexing="ij")
    own = ((kx > 0) & (2 * kx < width)) | ((kx == 0) & (ky > 0) & (2 * ky < height))
    frequencies = _frequencies(height, width)
    own &= frequencies <= LENGTHS[-1]
    energy, reading = response.at(frequencies[own])
    s, g = (_ridged(matrices) for matrices in (spectrum[own], energy))
    whitened = torch.linalg.solve(s, reading)
    root = torch.linalg.cholesky(g)
    inner = torch.linalg.solve_triangular(root, reading.mT @ whitened, upper=False)
    inner = torch.linalg.solve_triangular(root, inner.mT, upper=False)
    quality, vectors = torch.linalg.eigh((inner + inner.mT) / 2)
    directions = torch.linalg.solve_triangular(root.mT, vectors, upper=True)
    if 2 * quality.numel() < count:
        raise ValueError(f"expected at most {2 * quality.numel()} patterns, got {count}")
    best = quality.flatten().topk(-(-count // 2)).indices.repeat_interleave(2)[:count]
    wave, which = best // channels, best % channels
    r = directions[wave, :, which]
    filters = (whitened[wave] @ r[..., None])[..., 0] / quality.flatten()[best][:, None]
    places = own.nonzero()[wave]
    phases = torch.tensor([1, 1j], dtype=torch.complex128).repeat(count)[:count]

    def in_space(amplitudes: Tensor) -> Tensor:
        waves = torch.zeros(count, channels, height, half, dtype=torch.complex128)
        values, each = amplitudes * phases[:, None] / 2**0.5, torch.arange(count)
        waves[each, :, places[:, 0], places[:, 1]] = values
        upright = places[:, 1] == 0  # of these waves, both halves lie in the half spectrum
        waves[each[upright], :, -places[upright, 0], 0] = values[upright].conj()
        return torch.fft.irfft2(waves, s=(height, width), norm="ortho").float()

    return SpectralCode(in_space(r), in_space(filters), quality.flatten()[best].rsqrt().float())


def _frequencies(height: int, width: int) -> Tensor:
    """(h, w // 2 + 1), in cycles a latent."""
    rows = torch.fft.fftfreq(height, dtype=torch.float64)
    columns = torch.fft.rfftfreq(width, dtype=torch.float64)
    return torch.hypot(rows[:, None], columns[None])


def _directions(frequency: float, height: int, width: int) -> list[tuple[int, int]]:
    """Whole waves over the canvas that are about so long: across and down."""
    return [(max(round(frequency * height), 1), 0), (0, max(round(frequency * width), 1))]


def _wave(rows: int, columns: int, height: int, width: int) -> Tensor:
    """A wave of amplitude 1, with whole numbers of cycles. Its phase is such that the fastest wave is no zero."""
    y, x = torch.arange(height) / height, torch.arange(width) / width
    turns = rows * y[:, None] + columns * x[None]
    return torch.cos(2 * torch.pi * turns + torch.pi / 4)


def _ridged(matrices: Tensor) -> Tensor:
    """Matrices (N, C, C) with a little added to their diagonals, so that they can be inverted."""
    mean = matrices.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    return matrices + _RIDGE * mean * torch.eye(matrices.shape[-1], dtype=matrices.dtype)
