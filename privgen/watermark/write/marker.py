"""Marks on existing images: from keys and canvases to what the mark changes in them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from privgen.diffusion.latents import encode
from privgen.errors import UsageError
from privgen.io.residual import Layers, at_psnr, to_canvas
from privgen.models.family import Canvas, patch_of
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.protocols import config_value, key_bits
from privgen.watermark.token import DEFAULT_TAU, token_embeddings
from privgen.watermark.write.layers import latent_psnr, layered_residual
from privgen.watermark.write.loudness import loud_bits
from privgen.watermark.write.mark_spec import NETWORK_PSNR, Carrier, MarkSpec, NetworkCarrier
from privgen.watermark.write.residual import decoded_difference, latent_residuals
from privgen.watermark.write.robust_mark import RobustMarker
from privgen.watermark.write.with_token import token_residuals


@dataclass(frozen=True)
class Marker:
    """Makes the marks of existing images.

    Attributes:
        networks: of the model that writes. Its extractor, if there is one, decides how loud each bit is written.
        spec: how marks are written. If it names no carrier, a tile is written, and the pattern in the latents under it
            if the model can write one.

    Raises:
        UsageError: robust steps with the carrier "token", or without an extractor, or with a model whose scheduler is
            not of the DDPM family.
    """

    networks: Networks
    spec: MarkSpec = field(default_factory=MarkSpec)

    def __post_init__(self) -> None:
        if self.spec.carrier is None:
            object.__setattr__(self, "spec", self.spec.or_carrier(self.networks.layers))
        if self.spec.robust_steps:
            self._robust_marker()  # say now, not after the first image, if there cannot be one

    @property
    def carrier(self) -> Carrier:
        """What the marks are written with."""
        return self.spec.carrier or "tile"

    @property
    def size(self) -> int:
        """Side in pixels of the canvas of a square image."""
        return self._canvas.size

    def canvas_of(self, pixels: Tensor) -> tuple[int, int]:
        """Height and width of an image's canvas: the model's square, or of its own aspect ratio if patterns are tiled.

        Args:
            pixels: (3, H, W).
        """
        return self._canvas.of_aspect(*pixels.shape[-2:])[0] if self._tiled else (self.size, self.size)

    @property
    def _canvas(self) -> Canvas:
        pipe = self.networks.pipeline
        if self._tiled:
            return Canvas.of_vae(pipe.vae, self.networks.mapper("latent").config.size * patch_of(pipe.vae))
        return Canvas.of_pipeline(pipe)

    @property
    def _tiled(self) -> bool:
        return self.spec.network_carrier == "latent" and config_value(self.networks.mapper("latent"), "tiled", False)

    def changes(self, images: Sequence[Tensor], keys: Sequence[Key]) -> Iterator[Tensor | Layers]:
        """What the marks of keys change in images, one image after the other.

        Args:
            images: each (3, H, W), floats in [0, 1] or samples.
            keys: whose marks: one key for all images, or one for each.

        Yields:
            What `privgen.io.residual.add_residual` takes: float32, in units of pixels in [0, 1], not yet scaled to a
            quality.
        """
        owners = keys if len(keys) == len(images) else [*keys] * len(images)
        written: list[Tensor | None] = [None] * len(images)
        if self.spec.network_carrier is not None:
            sizes = [self.canvas_of(pixels) for pixels in images]
            for size in dict.fromkeys(sizes):  # images with one canvas are marked together
                alike = [i for i in range(len(images)) if sizes[i] == size]
                canvases, theirs = to_canvas([images[i] for i in alike], size), [owners[i] for i in alike]
                for i, residual in zip(alike, self.residuals(canvases, theirs), strict=True):
                    written[i] = residual
        for pixels, key, residual in zip(images, owners, written, strict=True):
            if residual is None or self.spec.has_tile:
                yield layered_residual(pixels, key, residual, self.spec.payload)
            else:
                yield residual

    @torch.no_grad()
    def residuals(self, canvases: Tensor, keys: Sequence[Key]) -> Tensor:
        """What the networks' marks of keys change in images.

        Args:
            canvases: (B, 3, H, W) in [0, 1], images resized to their canvas.
            keys: whose marks: one key for all images, or one for each.

        Returns:
            (B, 3, H, W) float32, in units of pixels in [0, 1], not yet scaled to a quality.
        """
        networks = self.networks
        bits = key_bits(keys, networks.mapper(self._network_carrier()))
        psnr = latent_psnr(self.spec.quality) if self.spec.has_tile else NETWORK_PSNR
        quality = torch.full((len(canvases),), psnr, device=canvases.device)

        def marked(message: Tensor) -> Tensor:
            return at_psnr(canvases, self._write(canvases, message).to(canvases), quality)

        loud = loud_bits(bits, canvases, networks.extractor, marked)
        if not self.spec.robust_steps:
            return self._write(canvases, loud)
        vae = networks.pipeline.vae
        z = encode(vae, canvases)
        residual = networks.mapper("latent")(loud, height=z.shape[-2], width=z.shape[-1])
        residual = self._robust_marker()(z, residual, bits, canvases=canvases)
        return decoded_difference(vae, z, z + residual)

    def _write(self, canvases: Tensor, bits: Tensor) -> Tensor:
        carrier = self._network_carrier()
        pipe, mapper = self.networks.pipeline, self.networks.mapper(carrier)
        if carrier == "latent":
            return latent_residuals(canvases, bits, vae=pipe.vae, latent_mapper=mapper)
        embedding, negative = token_embeddings(mapper, bits)
        tau = float(config_value(mapper, "tau", DEFAULT_TAU))
        # Every image gets the same noise, so that its mark does not depend on its batch.
        generators = [torch.Generator().manual_seed(self.spec.seed) for _ in canvases]
        return token_residuals(canvases, embedding, negative_token=negative, pipe=pipe, tau=tau, generator=generators)

    def _network_carrier(self) -> NetworkCarrier:
        if self.spec.network_carrier is None:
            raise UsageError("A tile alone is written without networks.")
        return self.spec.network_carrier

    def _robust_marker(self) -> RobustMarker:
        if self.spec.network_carrier != "latent":
            raise UsageError("Robust steps fit a pattern in the latents; use them with the carrier latent.")
        return RobustMarker(self.networks.pipeline, self.networks.extractor, self.spec.robust_steps)
