"""A reader of marks in latents of many channels, which needs no training and no network.

A decoder answers a change of the latents by a change of pixels that depends on the image; but a part of the answer is
the same in all images. The reader looks for this part, by filters that `privgen adapt` measures.
"""

from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.nn.functional import conv2d, pad

from privgen.io.pixels import resize
from privgen.models.family import Canvas
from privgen.models.mappers import tiled


RINGS = (0.14, 0.2, 0.3, 0.4, 0.5, 0.71)
"""Borders of the rings of frequencies that are weighted apart, in cycles a latent. Slower waves are left out: images
are full of them."""

REACH = 3
"""Side, in latents, of the square of pixels that one latent is taken to change."""

_RANGE = 4  # times more or fewer pixels than the model's square, at most, have the sizes that are tried
_FIRST = (
    1.5  # times the energy of its logits the nearest canvas counts: faint bits of photographs are not written loud
)
_SURROUNDINGS = 2.0  # standard deviation, in latents, of the window in which content is levelled out
_LEAST = 1 / 255  # what is taken for the contrast of an area without any
_OWN = 0.5  # fraction of an image's own covariance in the noise that is expected; the rest is the usual one


class AnswerReader(ModelMixin, ConfigMixin):
    """Reads a message from an image by matched filters on levelled pixels.

    What lies around each pixel is subtracted, and the rest is divided by its size there. One convolution says how
    much of each latent's answer is in the pixels. For each ring of frequencies the channels are then weighted by what
    they carry, and against what this image and photographs in general have of themselves (a Wiener filter). If an
    image does not carry a mark, the correlation with a pattern of white noise, over the norms of both, is about a
    standard normal number. (Cox, Miller, Bloom, Fridrich and Kalker, Digital Watermarking and Steganography, 2008,
    chapter 7: whitening before correlation.)

    A mark has the size of the latents that it was added to, h x w: it is what `tiled` cuts out of one field of noise,
    or repeats. So its waves are the same for each size, and the filters fit. Whoever reads an image knows its aspect
    ratio only, and tries the sizes (`sizes`) at which it may have been drawn: its own, and four that models and
    `Watermark.embed` use. Of these it takes the reading with the largest logits, and the canvas of photographs unless
    another's are far larger. This is fair, because it does not depend on any key.

    Args:
        n_bits: bits of a message.
        side: of the square, in pixels, that the model draws. Photographs are marked on canvases with as many pixels.
        patch: side in pixels of what one latent shows.
        latent_channels: channels of the latents.
    """

    @register_to_config
    def __init__(self, n_bits: int, side: int, patch: int, latent_channels: int) -> None:
        super().__init__()
        latents, rings = side // patch, len(RINGS) - 1
        self.answers: Tensor
        self.noise: Tensor
        self.weights: Tensor
        self.patterns: Tensor
        self.register_buffer("answers", torch.zeros(latent_channels, 3, REACH * patch, REACH * patch))
        self.register_buffer("noise", torch.zeros(rings, latent_channels, latent_channels))
        self.register_buffer("weights", torch.zeros(rings, latent_channels, latent_channels))
        self.register_buffer("patterns", torch.zeros(n_bits, latent_channels, latents, latents))

    def forward(self, images: Tensor) -> Tensor:
        """Read images (B, 3, H, W) in [0, 1], any H and W; (B, n_bits) logits, a positive one reads as bit 1."""
        tried = torch.stack([self.read_drawn(resize(images, size)) for size in self.sizes(*images.shape[-2:])])
        energy = tried.detach().square().sum(2)
        energy[0] *= _FIRST
        clearest = energy.argmax(0)
        return tried[clearest, torch.arange(len(images), device=tried.device)]

    def sizes(self, height: int, width: int) -> list[tuple[int, int]]:
        """Heights and widths in pixels at which an image may have been drawn.

        They are the two nearest canvases (`Canvas.of_aspect`), those with the side of the model's square as the
        shorter or the longer one, and the image's own; but none with far more or far fewer pixels than the square.
        """
        side, patch = self.config.side, self.config.patch
        canvas = Canvas(side, patch, self.config.latent_channels)
        shorter, longer = (side / each for each in sorted((height, width)))
        found = canvas.of_aspect(height, width, count=2)
        found += [canvas.rounded(scale * height, scale * width) for scale in (shorter, longer)]
        found.append((patch * round(height / patch), patch * round(width / patch)))
        return [size for size in dict.fromkeys(found) if 1 / _RANGE <= size[0] * size[1] / side**2 <= _RANGE]

    def read_drawn(self, images: Tensor) -> Tensor:
        """Read images of the size at which they were drawn.

        Args:
            images: (B, 3, H, W) in [0, 1], where H and W are whole latents.

        Returns:
            (B, n_bits), as `forward` does.
        """
        patch = self.config.patch
        seen = answered(levelled(images.to(self.patterns), patch), self.answers, patch)
        own = torch.stack([ring_covariance(one[None], one[None]) for one in seen])
        sizes, usual = (each.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] for each in (own, self.noise))
        expected = _OWN * own / (sizes + 1e-12) + (1 - _OWN) * self.noise / usual
        found = by_ring(seen, self.weights @ torch.linalg.inv(expected) / (sizes + 1e-12)).flatten(1)
        patterns = tiled(self.patterns, *seen.shape[-2:]).flatten(1)
        norms = found.square().mean(1, keepdim=True).sqrt() * patterns.norm(dim=1)
        return found @ patterns.T / norms.clamp(min=1e-9)


def levelled(pixels: Tensor, patch: int, change: Tensor | None = None) -> Tensor:
    """Pixels (B, 3, H, W) without what lies around each, over the contrast there; or a small change of them likewise.

    Args:
        pixels: their contrast counts.
        patch: side in pixels of what one latent shows.
        change: of the same shape, what is levelled instead.
    """
    sigma = _SURROUNDINGS * patch
    left = pixels - _blurred(pixels, sigma)
    contrast = (_blurred(left.square().mean(1, keepdim=True), sigma) + _LEAST**2).sqrt()
    return left / contrast if change is None else (change - _blurred(change, sigma)) / contrast


def answered(pixels: Tensor, answers: Tensor, patch: int) -> Tensor:
    """How much of each latent's answer is in pixels: (B, 3, H, W) to (B, C, H / patch, W / patch)."""
    return conv2d(pad(pixels, ((REACH // 2) * patch,) * 4), answers, stride=patch)


def by_ring(latents: Tensor, matrices: Tensor) -> Tensor:
    """Multiply the channels of latents by a matrix for each ring of frequencies.

    Args:
        latents: (B, C, h, w).
        matrices: (rings, D, C), or (B, rings, D, C).

    Returns:
        (B, D, h, w), without the waves that lie in no ring.
    """
    waves = torch.fft.rfft2(latents)
    result = waves.new_zeros(len(latents), matrices.shape[-2], *waves.shape[2:])
    each = matrices.expand(len(latents), *matrices.shape[-3:])
    for i, ring in enumerate(_rings(latents)):
        result[:, :, ring] = each[:, i].to(waves.dtype) @ waves[:, :, ring]
    return torch.fft.irfft2(result, s=latents.shape[-2:])


def ring_covariance(one: Tensor, other: Tensor) -> Tensor:
    """Covariances of the channels of two batches of latents (B, C, h, w), for each ring: (rings, C, C)."""
    a, b = (torch.fft.rfft2(latents, norm="ortho") for latents in (one, other))
    rings = _rings(one)
    return torch.stack(
        [
            torch.einsum("bcn,bdn->cd", a[:, :, r], b[:, :, r].conj()).real / (len(a) * r.sum().clamp(min=1))
            for r in rings
        ]
    )


def _rings(latents: Tensor) -> list[Tensor]:
    """For each ring which waves of latents (..., h, w) lie in it, as `torch.fft.rfft2` orders them."""
    height, width = latents.shape[-2:]
    rows = torch.fft.fftfreq(height, device=latents.device)
    frequencies = torch.hypot(rows[:, None], torch.fft.rfftfreq(width, device=latents.device)[None])
    return [(low <= frequencies) & (frequencies < high) for low, high in pairwise(RINGS)]


def _blurred(planes: Tensor, sigma: float) -> Tensor:
    """Blur each channel by a Gaussian; edges are repeated outwards."""
    radius, channels = round(2.5 * sigma), planes.shape[1]
    x = torch.arange(-radius, radius + 1, device=planes.device, dtype=planes.dtype)
    kernel = torch.exp(-x.square() / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(channels, 1, -1)
    rows = conv2d(pad(planes, (0, 0, radius, radius), mode="replicate"), kernel[..., None], groups=channels)
    return conv2d(pad(rows, (radius, radius, 0, 0), mode="replicate"), kernel[:, :, None], groups=channels)
