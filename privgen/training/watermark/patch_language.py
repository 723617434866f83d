"""The language of tokens: one word for each cell of the canvas, which says what pattern to lay over the cell."""

from typing import Any

import torch
from torch import Tensor, nn

from privgen.diffusion.latents import decode
from privgen.models.mappers import TokenMapper, signs
from privgen.training.loop import sample_generator
from privgen.watermark.write.linear_code import low_frequencies


_WEAK = 0.05  # gain below which a channel hardly changes pixels


class PatchLanguage(nn.Module):
    """Maps patterns in the latents to words, and messages to patterns.

    Args:
        patterns: (n_bits, C, h, w), in units of scaled latents. The pattern of a message is their sum, each with the
            sign of its bit.
        gains: (1, C, 1, 1), from `channel_gains`.
        cells: number of cells along each side of the canvas.
        width: numbers of a word, those of an embedding of the text encoder.
        cycles: most waves of a random pattern across the canvas.
    """

    patterns: Tensor
    gains: Tensor
    smooth: Tensor

    def __init__(self, patterns: Tensor, gains: Tensor, *, cells: int, width: int, cycles: int) -> None:
        super().__init__()
        self.cells = cells
        self.register_buffer("patterns", patterns, persistent=False)
        self.register_buffer("gains", gains, persistent=False)
        smooth = low_frequencies(1, patterns.shape[2], patterns.shape[3], cycles).float()
        self.register_buffer("smooth", smooth @ smooth.T, persistent=False)
        numbers = patterns.shape[1:].numel() // cells**2
        self.words = nn.Parameter(torch.zeros(cells**2, width))
        self.content = nn.Parameter(torch.zeros(width, numbers))

    @torch.no_grad()
    def draw(self, scale: float, seed: int) -> None:
        """Draw random words, and a random orthogonal map of what they say, both of RMS about `scale`."""
        drawn = torch.randn(self.words.shape, generator=sample_generator(seed, 0))
        mixing = nn.init.orthogonal_(torch.empty(self.content.shape), generator=sample_generator(seed, 1))
        self.words.copy_(scale * drawn)
        self.content.copy_(scale * mixing)

    @torch.no_grad()
    def learn_from(self, mapper: TokenMapper) -> None:
        """Take over the words of a mapper that `token_mapper` has made."""
        words = mapper.direct.bias.view(mapper.config.vectors, -1)
        said = mapper.direct.weight.unflatten(0, words.shape).permute(2, 0, 1)  # (bits, words, width)
        patches = self.patches(self.patterns)
        solved = torch.linalg.lstsq(patches.flatten(0, 1), said.flatten(0, 1), driver="gelsd").solution
        self.words.copy_(words)
        self.content.copy_(solved.T)

    def of_message(self, bits: Tensor) -> Tensor:
        """The patterns (B, C, h, w) of messages (B, n_bits) of 0 and 1."""
        return torch.einsum("bn,nchw->bchw", signs(bits), self.patterns)

    def smoothed(self, noise: Tensor) -> Tensor:
        """Turn white noise (B, C, h, w) into smooth random patterns that are as visible as those of messages."""
        amplitude = (len(self.smooth) / self.smooth.trace()).sqrt()
        smooth = amplitude * (noise.flatten(2) @ self.smooth).view_as(noise)
        # Channels that hardly change pixels would have to change very much, so they are left out.
        return torch.where(self.gains < _WEAK, 0.0, self._loudness() * smooth / self.gains.clamp(min=1e-6))

    def embeddings(self, pattern: Tensor) -> Tensor:
        """The words (B, words, width) that say patterns (B, C, h, w)."""
        return self.words + self.patches(pattern) @ self.content.T

    def patches(self, pattern: Tensor) -> Tensor:
        """Cut patterns (B, C, h, w) into cells, and weigh each number by how visible it is; (B, words, numbers)."""
        seen = self.gains * pattern / self._loudness()
        cut = seen.unflatten(3, (self.cells, -1)).unflatten(2, (self.cells, -1)).permute(0, 2, 4, 1, 3, 5)
        return cut.flatten(3).flatten(1, 2)

    @torch.no_grad()
    def token_mapper(self, tau: int, strength: float) -> TokenMapper:
        """The mapper from messages to tokens, which is linear in the bits.

        Args:
            tau: see `TokenMapper`.
            strength: factor on what the words say.
        """
        n_bits, (vectors, width) = len(self.patterns), self.words.shape
        mapper = TokenMapper(n_bits, vectors, width, tau=tau, complement=True)
        single = strength * (self.embeddings(self.patterns) - self.words)
        mapper.direct.weight.copy_(single.flatten(1).T)
        mapper.direct.bias.copy_(self.words.flatten())
        return mapper

    def _loudness(self) -> Tensor:
        """RMS of the visible part of a message's pattern, a scalar."""
        return (self.gains * self.patterns).square().sum(dim=0).mean().sqrt()


@torch.no_grad()
def channel_gains(vae: Any, latents: Tensor) -> Tensor:
    """Measure how much each channel of the latents changes pixels.

    Args:
        vae: Diffusers' autoencoder.
        latents: (B, C, h, w), scaled, to average over.

    Returns:
        (1, C, 1, 1), the RMS of the change of pixels for equal changes of the channels, divided by its mean.
    """
    plain, noise = decode(vae, latents), 0.1 * torch.randn(latents[:, :1].shape, generator=sample_generator(0, 1))
    gains = []
    for channel in range(latents.shape[1]):
        changed = latents.clone()
        changed[:, channel : channel + 1] += noise
        gains.append((decode(vae, changed) - plain).square().mean().sqrt())
    return torch.stack(gains).view(1, -1, 1, 1) / torch.stack(gains).mean()
