"""Between pixels and scaled latents, for all of Diffusers' autoencoders. The one home of scaling and shift.

Scaled latents are what a diffusion model denoises: (z - shift) * scale of an `AutoencoderKL`, and what an
`AutoencoderTiny` returns, which is trained to give scaled latents.
"""

from typing import Any

import torch
from torch import Tensor


def encode(vae: Any, pixels: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Encode pixels.

    Args:
        vae: Diffusers' `AutoencoderKL` or `AutoencoderTiny`.
        pixels: (B, 3, H, W) in [0, 1], on any device.
        generator: draws the latents from their distribution; without it they are its mean.

    Returns:
        (B, C, h, w) float32 scaled latents, on the autoencoder's device.
    """
    encoded = vae.encode((2 * pixels - 1).to(vae.device, vae.dtype))
    if hasattr(encoded, "latent_dist"):
        posterior = encoded.latent_dist
        z = posterior.mean if generator is None else posterior.sample(generator)
    else:
        z = encoded.latents
    return (z.float() - shift(vae)) * scale(vae)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Decode scaled latents, without clipping.

    Args:
        vae: Diffusers' `AutoencoderKL` or `AutoencoderTiny`.
        latents: (B, C, h, w), scaled, on the autoencoder's device.

    Returns:
        (B, 3, H, W) float32, mostly in [0, 1].
    """
    z = (latents / scale(vae) + shift(vae)).to(vae.dtype)
    pixels: Tensor = vae.decode(z, return_dict=False)[0]
    return pixels.float() / 2 + 0.5


def scale(vae: Any) -> float:
    """The factor from latents to scaled latents; 1 where the configuration has none."""
    return float(getattr(vae.config, "scaling_factor", None) or 1)


def shift(vae: Any) -> float:
    """What is subtracted from latents before they are scaled; 0 where the configuration has none."""
    return float(getattr(vae.config, "shift_factor", None) or 0)
