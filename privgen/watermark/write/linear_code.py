"""The best linear code for marks in an autoencoder's latent space, in closed form.

If you add a pattern r to the latents z of an image x, the pixels change by J r, and the latents of the marked image
change by A r. Both are nearly linear. The pattern costs a squared pixel change of r' G r, where G = J' J. It is read
from latents whose image content has covariance S. If the content is Gaussian, the best reader of r is the whitened
matched filter S^-1 A r, with a squared signal-to-noise ratio of r' A' S^-1 A r. So the best patterns at a given image
quality are the leading generalised eigenvectors of A' S^-1 A against G (Fisher's discriminant; S. Kay, Fundamentals of
Statistical Signal Processing II, chapter 4). The extractor's training starts from this code.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privgen.diffusion.latents import decode, encode
from privgen.io.progress import Bar


@dataclass(frozen=True, eq=False)
class Response:
    """The effect of small changes of the latents, averaged over some images. d is the number of latent values.

    Attributes:
        energy: G, shape (d, d): r changes the pixels, which are in [0, 1], by r' G r, squared and summed.
        reading: A, shape (d, d): r changes the latents of the marked image by A r.
    """

    energy: Tensor
    reading: Tensor


@dataclass(frozen=True, eq=False)
class LinearCode:
    """Patterns that carry bits, and filters that read them.

    Attributes:
        patterns: (n_bits, d), each with a squared pixel change of 1.
        filters: (n_bits, d); filter i reads 1 from pattern i and 0 from the others.
        noise: (n_bits,), standard deviation of each filter's output on unmarked images.
    """

    patterns: Tensor
    filters: Tensor
    noise: Tensor


@torch.no_grad()
def measure_response(vae: Any, canvases: Tensor, *, step: float = 0.3, batch_size: int = 64) -> Response:
    """Measure the effect of each latent value by finite differences.

    Args:
        vae: Diffusers' autoencoder.
        canvases: (B, 3, S, S) in [0, 1]; the response is averaged over them.
        step: size of the differences, in units of scaled latents.
        batch_size: number of differences that are computed at a time.
    """
    energy, reading = torch.zeros(()), torch.zeros(())
    total = len(canvases) * encode(vae, canvases[:1]).numel()
    with Bar(total=total, desc="latent response", unit="direction") as bar:
        for canvas in canvases.split(1):
            z = encode(vae, canvas)
            plain, unit = decode(vae, z), step * torch.eye(z.numel(), device=z.device)
            pixels, latents = [], []
            for rows in unit.split(batch_size):
                change = decode(vae, z + rows.view(-1, *z.shape[1:])) - plain
                pixels.append(change.flatten(1) / step)
                latents.append((encode(vae, canvas.to(change) + change) - z).flatten(1) / step)
                bar.update(len(rows))
            jacobian = torch.cat(pixels)
            energy = energy + jacobian @ jacobian.T / len(canvases)
            reading = reading + torch.cat(latents).T / len(canvases)
    return Response(energy, reading)


def solve_code(
    covariance: Tensor,
    response: Response,
    n_bits: int,
    *,
    span: Tensor | None = None,
    ridge: float = 0.02,
) -> LinearCode:
    """Find the patterns that are read best at a given image quality, and their filters.

    Args:
        covariance: S, (d, d), of the latents of unmarked images, attacked ones included.
        response: of the autoencoder.
        n_bits: number of patterns.
        span: (d, k), linearly independent columns; patterns are combinations of them. None allows all patterns.
        ridge: added to the diagonals of S and G, as a fraction of their mean.

    Raises:
        ValueError: `n_bits` is larger than the number of dimensions.
    """
    s, g = (ridged(matrix.double(), ridge) for matrix in (covariance, response.energy))
    a = response.reading.double()
    free = torch.eye(len(s), dtype=s.dtype) if span is None else span.double()
    if n_bits > free.shape[1]:
        raise ValueError(f"expected at most {free.shape[1]} patterns, got {n_bits}")
    whitened = torch.linalg.solve(s, a)
    root = torch.linalg.cholesky(free.T @ g @ free)
    quality = torch.linalg.solve_triangular(root, free.T @ a.T @ whitened @ free, upper=False)
    quality = torch.linalg.solve_triangular(root, quality.T, upper=False)
    best = torch.linalg.eigh((quality + quality.T) / 2).eigenvectors[:, -n_bits:]
    patterns = free @ torch.linalg.solve_triangular(root.T, best, upper=True)
    filters = zero_forcing(s, a @ patterns)
    noise = (filters @ covariance.double() @ filters.T).diagonal().sqrt()
    return LinearCode(patterns.T.float(), filters.float(), noise.float())


def zero_forcing(covariance: Tensor, signals: Tensor) -> Tensor:
    """Return the filters with the least noise that read 1 from their own signal and 0 from the others.

    Args:
        covariance: (d, d), of the noise, positive definite.
        signals: (d, k), linearly independent columns.

    Returns:
        (k, d).
    """
    whitened = torch.linalg.solve(covariance, signals)
    return torch.linalg.solve(signals.T @ whitened, whitened.T)


def low_frequencies(channels: int, height: int, width: int, cycles: int) -> Tensor:
    """Return a basis of smooth patterns: plane waves of at most `cycles` cycles across the canvas in each direction.

    Returns:
        (channels * height * width, k), orthonormal columns; the whole space if the grid is too small for more.
    """
    waves = []
    for side in (height, width):
        place = (torch.arange(side, dtype=torch.float64) + 0.5) / side
        angles = [2 * torch.pi * k * place for k in range(cycles + 1)]
        lines = torch.stack([angle.cos() for angle in angles] + [angle.sin() for angle in angles[1:]], dim=1)
        u, size, _ = torch.linalg.svd(lines, full_matrices=False)
        waves.append(u[:, size > 1e-6])
    return torch.kron(torch.eye(channels, dtype=torch.float64), torch.kron(*waves))


def stationary_covariance(latents: Tensor) -> Tensor:
    """Estimate the covariance of latents as if it depended on distances only, not on places.

    A few hundred photographs are too few to estimate the covariance of thousands of latent values. Mixed with this
    estimate, the covariance is also right for other photographs.

    Args:
        latents: (N, C, h, w).

    Returns:
        (C h w, C h w).
    """
    _, channels, height, width = latents.shape
    double = (2 * height, 2 * width)
    spectrum = torch.fft.rfft2(latents - latents.mean(0), s=double)
    lags = [torch.arange(-side + 1, side) for side in (height, width)]
    pairs = (height - lags[0].abs())[:, None] * (width - lags[1].abs())
    rows, columns = (torch.arange(side)[:, None] - torch.arange(side) + side - 1 for side in (height, width))
    result = torch.zeros(channels, height, width, channels, height, width)
    for channel in range(channels):
        cross = torch.fft.irfft2((spectrum[:, channel, None] * spectrum.conj()).mean(0), s=double)
        by_lag = cross[:, lags[0]][:, :, lags[1]] / pairs
        # (other channel, y, y', x, x') to (y, x, other channel, y', x')
        result[channel] = by_lag[:, rows[:, :, None, None], columns].permute(1, 3, 0, 2, 4)
    size = channels * height * width
    flat = result.reshape(size, size)
    return (flat + flat.T) / 2


def nearest_covariance(matrix: Tensor) -> Tensor:
    """Return the positive semi-definite matrix that is nearest to a symmetric one.

    A covariance that was estimated lag by lag has negative eigenvalues, which are larger the fewer the images are.

    Args:
        matrix: (d, d), symmetric.

    Returns:
        (d, d), of the same dtype.
    """
    values, vectors = torch.linalg.eigh(matrix.double())
    return ((vectors * values.clamp(min=0)) @ vectors.T).to(matrix.dtype)


def ridged(matrix: Tensor, ridge: float) -> Tensor:
    """Return a square matrix with `ridge` times the mean of its diagonal added to the diagonal."""
    return matrix + ridge * matrix.diagonal().mean() * torch.eye(len(matrix)).to(matrix)
