"""The aligner: reads marks in parts of an image, after the part was put back to its place on the canvas."""

from typing import Self

import numpy as np
import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from privgen.models.extractor import LEAST_VARIANCE, Extractor, encoder_fields
from privgen.models.family import Canvas
from privgen.models.latent_encoder import build_encoder, canvases_of


_MOST_KEPT = 512  # parts of the canvas whose filters are kept: those of a plain search, and some more


class Aligner(ModelMixin, ConfigMixin):
    """Reads a mark from any part of the canvas, by a closed form.

    A mark adds the patterns P of its bits to an image's latents; the image's content is noise of covariance S. Both
    are known, so the best linear reader of any part is known too (linear minimum mean square error; S. Kay,
    Fundamentals of Statistical Signal Processing I, chapter 12). A bit whose pattern lies beyond the edge reads as
    nothing, a bit of which half is there reads half as clearly, and content that goes on from place to place is told
    apart from marks.

    In evaluation mode the aligner keeps the filters of each part, because a search looks at the same parts of all
    images. If you change patterns or covariance, call `forget`.

    Args:
        n_bits: bits of a message.
        size: side of the canvas in pixels.
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
        values = Canvas.of_reader(self).values
        self.patterns = nn.Parameter(torch.zeros(n_bits, values))
        # Content is no Gaussian noise, so the closed form is too sure; logits are divided by exp(log_temperature).
        self.log_temperature = nn.Parameter(torch.zeros(()))
        self.mean: Tensor
        self.covariance: Tensor
        self.register_buffer("mean", torch.zeros(values))
        self.register_buffer("covariance", torch.eye(values))
        self._filters: dict[bytes, Tensor] = {}

    @classmethod
    def from_extractor(cls, extractor: Extractor) -> "Aligner":
        """An aligner with an extractor's encoder; it knows no patterns yet."""
        aligner = cls(n_bits=extractor.config.n_bits, **encoder_fields(extractor))
        aligner.encoder.load_state_dict(extractor.encoder.state_dict())
        return aligner

    def forward(self, images: Tensor, seen: Tensor | None = None, *, quick: bool = False) -> Tensor:
        """Read canvases.

        Args:
            images: (B, 3, H, W) in [0, 1], canvases with an image in its place.
            seen: (B, 1, H', W') of 0 and 1, the part of each canvas that the image shows; by default all. See
                `privgen.watermark.read.pose.put_back`.
            quick: see `read_parts`.

        Returns:
            Logits (B, n_bits); a positive one reads as bit 1.
        """
        return self.read(self.encode(images), seen, quick=quick)

    def encode(self, images: Tensor) -> Tensor:
        """Encode images (B, 3, H, W) in [0, 1], any H and W, to latents (B, C, h, w)."""
        latents: Tensor = self.encoder(canvases_of(images, self.config, self.patterns))
        return latents

    def read(self, latents: Tensor, seen: Tensor | None = None, *, quick: bool = False) -> Tensor:
        """Read latents (B, C, h, w); only those count that see nothing beyond the edge. Returns logits (B, n_bits)."""
        side = (latents.shape[2], latents.shape[3])
        if seen is None:
            return self.read_parts(latents[None], latents.new_ones(1, side[0] * side[1]), quick=quick)[0]
        return self.read_parts(latents[:, None], seen_cells(seen.to(latents), side), quick=quick)[:, 0]

    def read_parts(self, latents: Tensor, cells: Tensor, *, quick: bool = False) -> Tensor:
        """Read groups of images, each group with one part of the canvas in common.

        Args:
            latents: (G, B, C, h, w), G groups of B images.
            cells: (G, h w) of 0 and 1, the part that each group shows; see `seen_cells`.
            quick: take content as independent from place to place. That reads a little less, and the filters of a new
                part take a hundredth of the time.

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
            # How loud this image's content is, relative to what the covariance expects.
            loudness.append((seen.square() / variance[part]).sum(dim=1) / max(1, seen.shape[1]))
        scale = 2 / (torch.stack(loudness) + LEAST_VARIANCE) / self.log_temperature.float().exp()
        return scale[..., None] * torch.stack(bits)

    def train(self, mode: bool = True) -> Self:
        """Set the mode, as for any module; filters are kept in evaluation mode only."""
        self.forget()
        return super().train(mode)

    def forget(self) -> None:
        """Drop the kept filters; call it after you have changed patterns or covariance."""
        self._filters.clear()

    def _filters_of(self, part: Tensor) -> Tensor:
        """Filters (n_bits, n) for the n latent values that `part`, (values,) of bool, marks as seen."""
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
        matched = torch.cholesky_solve(patterns.T, root).T
        # By the matrix inversion lemma; for one bit the others are noise too.
        posterior = torch.linalg.inv(torch.eye(len(patterns), device=part.device) + matched @ patterns.T)
        return posterior @ matched / posterior.diagonal()[:, None]


def read_independent(
    latents: Tensor, cells: Tensor, patterns: Tensor, mean: Tensor, variance: Tensor, temperature: Tensor
) -> Tensor:
    """Read groups of images by the best linear reader for content whose latent values are independent of each other.

    Args:
        latents: (G, B, C, h, w), G groups of B.
        cells: (G, h w) of 0 and 1; only cells of 1 count.
        patterns: (n_bits, d), where d = C h w.
        mean: (d,), of content.
        variance: (d,), of content.
        temperature: a scalar; logits are divided by it.

    Returns:
        Logits (G, B, n_bits).
    """
    weights = cells.float().repeat(1, latents.shape[2]) / variance
    values = (latents.flatten(2) - mean).float()
    matched = (weights[:, None] * values) @ patterns.T
    n_bits, by_cell = len(patterns), (latents.shape[2], -1)
    scaled = (patterns / variance).unflatten(1, by_cell)
    among = torch.einsum("ncs,mcs->snm", patterns.unflatten(1, by_cell), scaled).flatten(1)
    among = (cells.float() @ among).view(-1, n_bits, n_bits)
    known = torch.linalg.solve(torch.eye(n_bits, device=among.device) + among, among)
    # By the matrix inversion lemma; for one bit the others are noise too.
    fraction = known.diagonal(dim1=1, dim2=2)[:, None]
    estimate = matched - matched @ known.mT
    seen = (weights > 0).sum(dim=1)[:, None].clamp(min=1)
    loudness = torch.einsum("gbd,gd->gb", values.square(), weights) / seen
    # How loud this image's content is, relative to what the variance expects.
    scale = 2 / (loudness + LEAST_VARIANCE) / temperature
    return scale[..., None] * estimate / (1 - fraction).clamp(min=1e-4)


def seen_cells(seen: Tensor, side: tuple[int, int]) -> Tensor:
    """Which of h x w cells of the canvas are seen to their edges.

    Args:
        seen: (B, 1, H, W) of 0 and 1, the pixels that are seen.
        side: h and w.

    Returns:
        (B, h w) of bool.
    """
    return (F.adaptive_avg_pool2d(seen, side) > 0.999).flatten(1)
