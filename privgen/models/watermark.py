"""The networks of the watermark: message to latent residual, message to token, image to message."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F


def signs(bits: Tensor) -> Tensor:
    """Message bits 0 and 1 as -1 and 1, float32."""
    return 2 * bits.float() - 1


class LatentMapper(ModelMixin, ConfigMixin):
    """The residual encoder R(m): message bits to a pattern that is added to the latents.

    A linear map of the bits, as in the paper ("Your Text Encoder Can Be An Object-Level Watermarking Controller",
    https://huggingface.co/papers/2503.11945, pre-training of the extractor).

    Args:
        n_bits: bits of a message.
        channels: of the latents.
        size: side of the pattern; other latent sizes get it resampled, so that it still spans the canvas.
        strength: RMS of the pattern, in units of the scaled latents.
    """

    @register_to_config
    def __init__(self, n_bits: int = 48, channels: int = 8, size: int = 16, strength: float = 0.1) -> None:
        super().__init__()
        self.patterns = nn.Parameter(torch.randn(n_bits, channels, size, size) / n_bits**0.5)

    def forward(self, bits: Tensor, height: int = 16, width: int = 16) -> Tensor:
        """Map messages to residuals.

        Args:
            bits: shape (B, n_bits), 0 or 1.
            height: of the latents.
            width: of the latents.

        Returns:
            Shape (B, channels, height, width), each of RMS `strength` before it is resampled.
        """
        residual = torch.einsum("bn,nchw->bchw", signs(bits).to(self.patterns), self.patterns)
        rms = residual.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        residual = self.config.strength * residual / (rms + 1e-8)
        if residual.shape[-2:] == (height, width):
            return residual
        return F.interpolate(residual, (height, width), mode="bicubic", align_corners=False)


class TokenMapper(ModelMixin, ConfigMixin):
    """Message bits to the embeddings of a text token, so that a new key needs no training.

    Args:
        n_bits: bits of a message.
        vectors: embeddings of a token.
        width: of the text encoder's embeddings.
        hidden: width of the network.
        scale: factor on the network's output; the RMS of the text encoder's own table is a good one.
        tau: timestep, of 1000, from which on the token is trained to act.
    """

    @register_to_config
    def __init__(
        self,
        n_bits: int = 48,
        vectors: int = 16,
        width: int = 128,
        hidden: int = 512,
        scale: float = 1.0,
        tau: int = 250,
    ) -> None:
        super().__init__()
        self.direct = nn.Linear(n_bits, vectors * width)
        self.deep = nn.Sequential(
            nn.Linear(n_bits, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
            nn.Linear(hidden, vectors * width),
        )

    def forward(self, bits: Tensor) -> Tensor:
        """Map messages (B, n_bits) of 0 and 1 to embeddings (B, vectors, width)."""
        message = signs(bits).to(self.direct.weight)
        flat = self.direct(message) + self.deep(message)
        return self.config.scale * flat.view(len(bits), self.config.vectors, self.config.width)


class _Residual(nn.Module):
    """Two normalised convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(channels, channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.norm_1, self.norm_2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(F.silu(self.norm_1(x)))
        return x + self.second(F.silu(self.norm_2(h)))


class Extractor(ModelMixin, ConfigMixin):
    """Image to message logits, whitened on clean images.

    Args:
        n_bits: bits of a message.
        size: side to which every image is resized before it is read.
        channels: of the three levels, at 1/4, 1/8 and 1/16 of `size`.
        blocks: residual blocks a level.
    """

    @register_to_config
    def __init__(
        self, n_bits: int = 48, size: int = 128, channels: tuple[int, int, int] = (64, 128, 160), blocks: int = 2
    ) -> None:
        super().__init__()
        first, second, third = channels
        self.stem = nn.Conv2d(3 * 16, first, 3, padding=1)
        self.level_1 = nn.Sequential(*(_Residual(first) for _ in range(blocks)))
        self.down_1 = nn.Conv2d(first, second, 2, stride=2)
        self.level_2 = nn.Sequential(*(_Residual(second) for _ in range(blocks)))
        self.down_2 = nn.Conv2d(second, third, 2, stride=2)
        self.level_3 = nn.Sequential(*(_Residual(third) for _ in range(blocks)))
        # The mark is fixed to the canvas, so the head keeps the place of what it reads.
        self.narrow = nn.Conv2d(third, 32, 1)
        self.head = nn.Linear(32 * (size // 16) ** 2, n_bits)
        self.register_buffer("mean", torch.zeros(n_bits))
        self.register_buffer("whitening", torch.eye(n_bits))

    def forward(self, images: Tensor) -> Tensor:
        """Read images.

        Args:
            images: shape (B, 3, H, W) in [0, 1], any H and W.

        Returns:
            Logits of shape (B, n_bits); positive reads as bit 1.
        """
        size = self.config.size
        x = images.to(self.stem.weight)
        if x.shape[-2:] != (size, size):
            x = F.interpolate(x, (size, size), mode="bicubic", align_corners=False, antialias=True)
        h = self.level_1(self.stem(F.pixel_unshuffle(2 * x - 1, 4)))
        h = self.level_3(self.down_2(self.level_2(self.down_1(h))))
        logits = self.head(F.silu(self.narrow(h)).flatten(1))
        return (logits - self.mean) @ self.whitening

    @torch.no_grad()
    def whiten(self, logits: Tensor) -> None:
        """Make logits of clean images unbiased and uncorrelated (the nearest such map, "ZCA").

        Args:
            logits: this network's logits on clean images, shape (N, n_bits), N well above n_bits.

        Raises:
            ValueError: if there are not more images than bits.
        """
        if len(logits) <= logits.shape[1]:
            raise ValueError(f"expected more clean images than {logits.shape[1]} bits, got {len(logits)}")
        covariance = torch.cov(logits.double().T)
        values, vectors = torch.linalg.eigh(covariance)
        whitening = vectors @ torch.diag((values + 1e-6).rsqrt()) @ vectors.T
        before = self.whitening.double()
        # Composed with what is there, so that whitening twice changes nothing.
        self.mean += (torch.linalg.pinv(before).T @ logits.double().mean(0)).to(self.mean)
        self.whitening.copy_((before @ whitening).to(self.whitening))
