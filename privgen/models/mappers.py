"""What turns a message into a mark: bits to a pattern in the latents, bits to the embeddings of a text token."""

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F


def signs(bits: Tensor) -> Tensor:
    """Message bits 0 and 1 as -1 and 1, float32."""
    return 2 * bits.float() - 1


def tiled(patterns: Tensor, height: int, width: int) -> Tensor:
    """Cut patterns (..., h, w) to a size, or repeat them up to it, from the top left corner."""
    rows, columns = (
        torch.arange(wanted, device=patterns.device) % side
        for wanted, side in zip((height, width), patterns.shape[-2:], strict=True)
    )
    return patterns[..., rows[:, None], columns]


class LatentMapper(ModelMixin, ConfigMixin):
    """The residual encoder R(m): maps message bits to a pattern that is added to the latents.

    It is a linear map of the bits, as in the paper ("Your Text Encoder Can Be An Object-Level Watermarking
    Controller", https://huggingface.co/papers/2503.11945, pre-training of the extractor).

    Args:
        n_bits: bits of a message.
        channels: channels of the latents.
        size: side of the pattern in latents. For other sizes it is resampled, so that it spans the canvas.
        strength: RMS of the pattern, in units of scaled latents.
        tiled: for other sizes the pattern is cut or repeated instead, so that its waves stay as they are.
    """

    @register_to_config
    def __init__(self, n_bits: int, channels: int, size: int, strength: float, tiled: bool = False) -> None:
        super().__init__()
        self.patterns = nn.Parameter(torch.randn(n_bits, channels, size, size) / n_bits**0.5)

    def forward(self, bits: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
        """Map messages to residuals.

        Args:
            bits: (B, n_bits), 0 or 1.
            height: of the latents; by default the pattern's own.
            width: of the latents; by default the pattern's own.

        Returns:
            (B, channels, height, width), each of RMS `strength` before it is resampled, cut or repeated.
        """
        height, width = height or self.config.size, width or self.config.size
        residual = torch.einsum("bn,nchw->bchw", signs(bits).to(self.patterns), self.patterns)
        rms = residual.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
        residual = self.config.strength * residual / (rms + 1e-8)
        if residual.shape[-2:] == (height, width):
            return residual
        if self.config.tiled:
            return tiled(residual, height, width)
        return F.interpolate(residual, (height, width), mode="bicubic", align_corners=False)


class TokenMapper(ModelMixin, ConfigMixin):
    """Maps message bits to the embeddings of a text token, so that a new key needs no training.

    Args:
        n_bits: bits of a message.
        vectors: number of embeddings that make up a token.
        width: numbers of one embedding of the text encoder.
        hidden: width of the hidden layers; 0 is a linear map.
        scale: factor on the output; the RMS of the text encoder's own embeddings is a good one.
        tau: the token is trained to act on timesteps t <= tau, of 1000.
        complement: whether the negative prompt ends in the token of the opposite message. Text can add what a word
            means but cannot take it away. Classifier-free guidance can, so that bits of 0 are written as well as
            bits of 1.
    """

    @register_to_config
    def __init__(
        self,
        n_bits: int,
        vectors: int,
        width: int,
        hidden: int = 0,
        scale: float = 1.0,
        tau: int = 250,
        complement: bool = False,
    ) -> None:
        super().__init__()
        self.direct = nn.Linear(n_bits, vectors * width)
        self.deep = None
        if hidden:
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
        flat = self.direct(message)
        if self.deep is not None:
            flat = flat + self.deep(message)
        return self.config.scale * flat.view(len(bits), self.config.vectors, self.config.width)
