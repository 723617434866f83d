"""Add a mark to an existing image as a residual, at the image's own size.

"Your Text Encoder Can Be An Object-Level Watermarking Controller" (arXiv 2503.11945) pre-trains its extractor with a
residual R(m) that is added to latents. Here the same residual marks a photograph that no model has made. Only the
difference that it makes is delivered, x + upsample(D(z + R(m)) - D(z)), so that the autoencoder's reconstruction error
stays out of the image.
"""

from typing import Any

import torch
from torch import Tensor

from privgen.diffusion.latents import decode, encode
from privgen.watermark.protocols import LatentMapperLike


@torch.no_grad()
def latent_residuals(canvases: Tensor, bits: Tensor, *, vae: Any, latent_mapper: LatentMapperLike) -> Tensor:
    """The change that R(m) makes in decoded images: D(z + R(m)) - D(z).

    Args:
        canvases: (B, 3, S, S) in [0, 1].
        bits: (B, n_bits), or (1, n_bits) for all.
        vae: Diffusers' autoencoder.
        latent_mapper: R(m).

    Returns:
        (B, 3, S, S) float32, on the autoencoder's device.

    Raises:
        ValueError: the number of messages is neither 1 nor B.
    """
    if len(bits) not in (1, len(canvases)):
        raise ValueError(f"expected one message or {len(canvases)}, got {len(bits)}")
    z = encode(vae, canvases)
    residual = latent_mapper(bits.to(z.device), height=z.shape[-2], width=z.shape[-1])
    return decoded_difference(vae, z, z + residual.to(z))


def decoded_difference(vae: Any, plain: Tensor, marked: Tensor) -> Tensor:
    """D(marked) - D(plain), not clipped: pixels that saturate in the decoder need not saturate in the image.

    Args:
        vae: Diffusers' autoencoder.
        plain: (B, C, h, w), scaled latents.
        marked: the same shape.

    Returns:
        (B, 3, S, S) float32, in units of pixels in [0, 1].
    """
    without, with_mark = decode(vae, torch.cat([plain, marked])).chunk(2)
    return with_mark - without
