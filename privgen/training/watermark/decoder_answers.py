"""How a decoder answers noise in the latents of photographs, and the code that follows from it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv_transpose2d, pad, pixel_unshuffle, unfold

from privgen.attacks import JPEG
from privgen.diffusion.latents import decode, encode
from privgen.models.answer_reader import REACH, answered, levelled, ring_covariance


_QUALITY = 40.0  # dB of the noise that is answered, as JPEG gets it
_PROBE = 0.1  # RMS of the noise that is answered, over that of the latents
_RIDGE = 1e-3  # of the mean of a matrix's diagonal
_JPEG = JPEG(50)


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
