"""The reader of marks of which only a part is seen, on images that are cut out or turned and put back."""

from typing import Self

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from privgen.models.extractor import LEAST_VARIANCE, Extractor, latent_encoder, to_side


_MOST_KEPT = 512  # parts of the canvas: those of a plain search, and some more


class Aligner(ModelMixin, ConfigMixin):
    """Reads what is left of a mark, in closed form.

    A mark adds to the latents of an image the sum of its bits' patterns P, content adds noise of covariance S, and
    both are known. So whatever is seen, the best linear reader of it is too (linear minimum mean square error; S. Kay,
    Fundamentals of Statistical Signal Processing I, chapter 12): a bit that lies beyond the edge is read as nothing,
    one that is half there as half as clear, and content that goes on from place to place is told from marks by that.

    Out of training the filters of each part of the canvas are kept, because a search looks at the same parts of all
    images; whoever changes patterns or covariance then calls `forget`.

    Args:
        n_bits: bits of a message.
        size: side of the canvas.
        latent_channels: of the encoder's result.
        block_out_channels: of the encoder's levels; each but the last halves the side.
        layers_per_block: residual blocks a level.
        norm_num_groups: of group normalisation.
        mid_block_attention: whether the middle of the encoder attends.
    """

    @register_to_config
    def __init__(
        self,
        n_bits: int = 48,
        size: int = 128,
        latent_channels: int = 8,
        block_out_channels: tuple[int, ...] = (16, 24, 64, 160),
        layers_per_block: int = 1,
        norm_num_groups: int = 8,
        mid_block_attention: bool = False,
    ) -> None:
        super().__init__()
        widths = tuple(block_out_channels)
        self.encoder = latent_encoder(latent_channels, widths, layers_per_block, norm_num_groups, mid_block_attention)
        values = latent_channels * (size >> (len(widths) - 1)) ** 2
        self.patterns = nn.Parameter(torch.zeros(n_bits, values))
        # How much surer than it should be it is, content being no Gaussian noise.
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.mean: Tensor
        self.covariance: Tensor
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("covariance", torch.eye(values))
        self._filters: dict[bytes, Tensor] = {}

    @classmethod
    def from_extractor(cls, extractor: Extractor) -> "Aligner":
        """An aligner with an extractor's encoder, which knows of no patterns yet."""
        names = ("n_bits", "size", "latent_channels", "block_out_channels", "layers_per_block", "norm_num_groups")
        config = {name: extractor.config[name] for name in (*names, "mid_block_attention")}
        aligner = cls(**config)
        aligner.encoder.load_state_dict(extractor.encoder.state_dict())
        return aligner

    def forward(self, images: Tensor, seen: Tensor | None = None, *, quick: bool = False) -> Tensor:
        """Read images.

        Args:
            images: shape (B, 3, H, W) in [0, 1], canvases with an image in its place.
            seen: shape (B, 1, H', W') of 0 and 1, what of them the image shows; by default all. See
                `privgen.watermark.read.pose.put_back`.
            quick: see `read_alike`.

        Returns:
            Logits of shape (B, n_bits); positive reads as bit 1.
        """
        return self.read(self.encode(images), seen, quick=quick)

    def encode(self, images: Tensor) -> Tensor:
        """Latents (B, C, h, w) of images (B, 3, H, W) in [0, 1], any H and W."""
        latents: Tensor = self.encoder(2 * to_side(images.to(self.patterns), self.config.size) - 1)
        return latents

    def read(self, latents: Tensor, seen: Tensor | None = None, *, quick: bool = False) -> Tensor:
        """Logits (B, n_bits) of latents (B, C, h, w), of which only those that see nothing beyond the edge count."""
        side = (latents.shape[2], latents.shape[3])
        if seen is None:
            return self.read_alike(latents[None], latents.new_ones(1, side[0] * side[1]), quick=quick)[0]
        return self.read_alike(latents[:, None], whole(seen.to(latents), side), quick=quick)[:, 0]

    def read_alike(self, latents: Tensor, cells: Tensor, *, quick: bool = False) -> Tensor:
        """Read groups of images of which the same part is seen, which takes little longer than one of each group.

        Args:
            latents: (G, B, C, h, w), G groups of B.
            cells: (G, h w) of 0 and 1, what of them counts; see `whole`.
            quick: take content for independent from place to place, which reads less: the filters of a part are then
                found in a hundredth of the time.

        Returns:
            Logits (G, B, n_bits).
        """
        if quick:
            variance = self.covariance.diagonal().float()
            temperature = self.log_temperature.float().exp()
            return read_independent(latents, cells, self.patterns.float(), self.mean.float(), variance, temperature)
        shown = cells.bool().repeat(1, latents.shape[2])
        values = (latents.flatten(2) - self.mean).float()
        variance = self.covariance.diagonal().float()
        bits, loudness = [], []
        for group, part in zip(values, shown, strict=True):
            seen = group[:, part]
            bits.append(seen @ self._filters_of(part).T)
            # How loud an image's content is, beside what it was expected to be.
            loudness.append((seen.square() / variance[part]).sum(dim=1) / max(1, seen.shape[1]))
        scale = 2 / (torch.stack(loudness) + LEAST_VARIANCE) / self.log_temperature.float().exp()
        return scale[..., None] * torch.stack(bits)

    def train(self, mode: bool = True) -> Self:
        """As of any module; filters are kept in evaluation only."""
        self.forget()
        return super().train(mode)

    def forget(self) -> None:
        """Solve for all filters anew, because patterns or covariance are others now."""
        self._filters.clear()

    def _filters_of(self, part: Tensor) -> Tensor:
        """Filters (n_bits, n) of the n latent values that `part`, (values,) of bool, shows."""
        if self.training:
            return self._solve(part)
        key = np.packbits(part.cpu().numpy()).tobytes()
        if key not in self._filters:
            if len(self._filters) >= _MOST_KEPT:
                self._filters.pop(next(iter(self._filters)))
            self._filters[key] = self._solve(part)
        return self._filters[key]

    def _solve(self, part: Tensor) -> Tensor:
        patterns = self.patterns.float()[:, part]
        root = torch.linalg.cholesky(self.covariance.float()[part][:, part])
        heard = torch.cholesky_solve(patterns.T, root).T
        # By the matrix inversion lemma, the other bits being noise too.
        posterior = torch.linalg.inv(torch.eye(len(patterns), device=part.device) + heard @ patterns.T)
        return posterior @ heard / posterior.diagonal()[:, None]


def read_independent(
    latents: Tensor, cells: Tensor, patterns: Tensor, mean: Tensor, variance: Tensor, temperature: Tensor
) -> Tensor:
    """The best linear reading among content whose latent values are independent of each other.

    Args:
        latents: (G, B, C, h, w), G groups of B.
        cells: (G, h w) of 0 and 1, what of them counts.
        patterns: (n_bits, d), d being C h w.
        mean: (d,) of content.
        variance: (d,) of content.
        temperature: that logits are divided by.

    Returns:
        Logits (G, B, n_bits).
    """
    weights = cells.float().repeat(1, latents.shape[2]) / variance
    values = (latents.flatten(2) - mean).float()
    heard = (weights[:, None] * values) @ patterns.T
    n_bits, by_cell = len(patterns), (latents.shape[2], -1)
    scaled = (patterns / variance).unflatten(1, by_cell)
    among = torch.einsum("ncs,mcs->snm", patterns.unflatten(1, by_cell), scaled).flatten(1)
    among = (cells.float() @ among).view(-1, n_bits, n_bits)
    known = torch.linalg.solve(torch.eye(n_bits, device=among.device) + among, among)
    # By the matrix inversion lemma, the other bits being noise too.
    share = known.diagonal(dim1=1, dim2=2)[:, None]
    estimate = heard - heard @ known.mT
    seen = (weights > 0).sum(dim=1)[:, None].clamp(min=1)
    loudness = torch.einsum("gbd,gd->gb", values.square(), weights) / seen
    # How loud an image's content is, beside what it was expected to be.
    scale = 2 / (loudness + LEAST_VARIANCE) / temperature
    return scale[..., None] * estimate / (1 - share).clamp(min=1e-4)


def whole(seen: Tensor, side: tuple[int, int]) -> Tensor:
    """Which of h x w patches were seen to their edges: (B, h w) of 0 and 1, from (B, 1, H, W) of 0 and 1."""
    return (F.adaptive_avg_pool2d(seen, side) > 0.999).flatten(1)
