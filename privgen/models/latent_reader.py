"""A reader of marks in latents of few channels, which needs no training: encode, whiten, correlate."""

from itertools import pairwise
from typing import Any, Self

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor
from torch.nn.functional import conv2d, pad

from privgen.models.family import Canvas
from privgen.models.latent_encoder import build_encoder, canvases_of, encoder_config, encoder_state


_SURROUNDINGS = 1.5  # standard deviation, in latents, of the window in which content is levelled out
_LEAST = 1e-2  # of the mean square of what is left, added everywhere
_RINGS = (0.05, 0.12, 0.2, 0.3, 0.4, 0.5, 0.71)  # cycles a latent; slower waves carry no mark
_RIDGE = 1e-2  # of the mean of the covariance's diagonal, added to it


class LatentReader(ModelMixin, ConfigMixin):
    """Reads a message from an image by matched filters on whitened latents.

    Content is smooth, loud in places, and alike in several channels; a pattern of white noise is not. So what lies
    around each latent is subtracted, the rest is divided by its power there, and channels are mixed so that content
    counts less. If an image does not carry a mark, its correlation with a
    pattern of white noise, over the norms of both, is about a standard normal number. (Cox, Miller, Bloom, Fridrich
    and Kalker, Digital Watermarking and Steganography, 2008, chapter 7: whitening before correlation.)

    Args:
        n_bits: bits of a message.
        size: side in pixels to which every image is resized before it is read.
        latent_channels: channels of the latents.
        block_out_channels: widths of the encoder's levels; each level but the last halves the side.
        layers_per_block: see `privgen.models.latent_encoder.build_encoder`.
        norm_num_groups: groups of the encoder's group normalisation; None where it has none.
        mid_block_attention: whether the middle of the encoder has attention.
    """

    @register_to_config
    def __init__(
        self,
        n_bits: int,
        size: int,
        latent_channels: int,
        block_out_channels: tuple[int, ...],
        layers_per_block: int | tuple[int, ...],
        norm_num_groups: int | None,
        mid_block_attention: bool,
    ) -> None:
        super().__init__()
        self.encoder = build_encoder(self.config)
        canvas = Canvas.of_reader(self)
        self.patterns: Tensor
        self.register_buffer("patterns", torch.zeros(n_bits, canvas.channels, canvas.latents, canvas.latents))

    @classmethod
    def from_vae(cls, vae: Any, patterns: Tensor, *, size: int) -> Self:
        """A reader in the scaled latents of an autoencoder.

        Args:
            vae: Diffusers' `AutoencoderKL` or `AutoencoderTiny`; its encoder is copied.
            patterns: (n_bits, C, h, w), what each bit of a mark adds to latents.
            size: side in pixels.
        """
        reader = cls(n_bits=len(patterns), **encoder_config(vae, size))
        reader.encoder.load_state_dict(encoder_state(vae))
        reader.patterns.copy_(patterns)
        return reader

    def forward(self, images: Tensor) -> Tensor:
        """Read images (B, 3, H, W) in [0, 1], any H and W; (B, n_bits) logits, a positive one reads as bit 1."""
        white = whitened(self.encoder(canvases_of(images, self.config, self.patterns)).float())
        patterns = self.patterns.float().flatten(1)
        norms = white.flatten(1).square().mean(1, keepdim=True).sqrt() * patterns.norm(dim=1)
        return white.flatten(1) @ patterns.T / norms.clamp(min=1e-9)


def whitened(latents: Tensor) -> Tensor:
    """Latents (B, C, h, w) without what lies around each, over the power of the rest there, mixed against content.

    For each ring of frequencies, the channels are multiplied by the inverse of their covariance in this image, as in a
    Wiener filter: where the content of several channels is alike or loud, it counts less.
    """
    left = latents - _blurred(latents)
    left = left / (left.square().mean(dim=(2, 3), keepdim=True) + 1e-12).sqrt()
    power = left.square().mean(1, keepdim=True)
    waves = torch.fft.rfft2(left / (_blurred(power) + _LEAST), norm="ortho")
    rows = torch.fft.fftfreq(latents.shape[-2], device=latents.device)
    frequencies = torch.hypot(rows[:, None], torch.fft.rfftfreq(latents.shape[-1], device=latents.device)[None])
    result = torch.zeros_like(waves)
    for low, high in pairwise(_RINGS):
        ring = (low <= frequencies) & (frequencies < high)
        part = waves[:, :, ring]
        covariance = (part @ part.mH).real / ring.sum().clamp(min=1)
        size = covariance.diagonal(dim1=1, dim2=2).mean(1)[:, None, None]
        covariance = covariance + (_RIDGE * size + 1e-12) * torch.eye(part.shape[1], device=latents.device)
        result[:, :, ring] = torch.linalg.solve(covariance.to(part.dtype), part)
    return torch.fft.irfft2(result, s=latents.shape[-2:], norm="ortho")


def _blurred(planes: Tensor) -> Tensor:
    """Blur each channel by a Gaussian; edges are repeated outwards."""
    radius, channels = round(3 * _SURROUNDINGS), planes.shape[1]
    x = torch.arange(-radius, radius + 1, device=planes.device, dtype=planes.dtype)
    kernel = torch.exp(-x.square() / (2 * _SURROUNDINGS**2))
    kernel = (kernel / kernel.sum()).expand(channels, 1, -1)
    rows = conv2d(pad(planes, (radius, radius, 0, 0), mode="replicate"), kernel[:, :, None], groups=channels)
    return conv2d(pad(rows, (0, 0, radius, radius), mode="replicate"), kernel[..., None], groups=channels)
