"""The encoder that extractor and aligner share: images to the scaled latents of an autoencoder."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.models.autoencoders.vae import Encoder, EncoderTiny
from torch import Tensor, nn

from privgen.diffusion.latents import scale, shift
from privgen.io.pixels import resize


FIELDS = (
    "size",
    "latent_channels",
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "mid_block_attention",
)
"""What the configuration of a network with such an encoder says of it."""


def build_encoder(config: Mapping[str, Any]) -> nn.Module:
    """An encoder with random weights.

    Args:
        config: has `FIELDS`. Its `layers_per_block` is one number for the encoder of an `AutoencoderKL`, and one
            number for each level for that of an `AutoencoderTiny`. Each level but the last halves the side.

    Returns:
        A network from (B, 3, size, size) in [-1, 1] to (B, latent_channels, h, w).
    """
    layers, widths = config["layers_per_block"], tuple(config["block_out_channels"])
    if isinstance(layers, Sequence):
        return EncoderTiny(3, config["latent_channels"], tuple(layers), widths, "relu")
    return Encoder(
        3,
        config["latent_channels"],
        ("DownEncoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=layers,
        norm_num_groups=config["norm_num_groups"],
        double_z=False,
        mid_block_add_attention=config["mid_block_attention"],
    )


def encoder_config(vae: Any, size: int | None = None) -> dict[str, Any]:
    """The configuration of a copy of an autoencoder's encoder.

    Args:
        vae: Diffusers' `AutoencoderKL` or `AutoencoderTiny`.
        size: side in pixels of what it is to read; by default what the autoencoder's configuration says.

    Raises:
        ValueError: an activation of an `AutoencoderTiny` that is not "relu", or no size.
    """
    config = vae.config
    side = size or getattr(config, "sample_size", None)
    if side is None:
        raise ValueError(f"expected a size, because the configuration of {type(vae).__name__} has none")
    tiny = "num_encoder_blocks" in config
    if tiny and config.act_fn != "relu":
        raise ValueError(f"expected the activation relu, got {config.act_fn}")
    return {
        "size": int(side),
        "latent_channels": config.latent_channels,
        "block_out_channels": tuple(config.encoder_block_out_channels if tiny else config.block_out_channels),
        "layers_per_block": tuple(config.num_encoder_blocks) if tiny else config.layers_per_block,
        "norm_num_groups": None if tiny else config.norm_num_groups,
        "mid_block_attention": False if tiny else config.mid_block_add_attention,
    }


@torch.no_grad()
def encoder_state(vae: Any) -> dict[str, Tensor]:
    """The weights with which `build_encoder(encoder_config(vae))` gives the mean scaled latents of an autoencoder."""
    state = {name: value.clone() for name, value in vae.encoder.state_dict().items()}
    last = next(reversed(state)).rpartition(".")[0]
    half = vae.config.latent_channels  # the rest is the logarithm of the variance
    weight, bias = state[f"{last}.weight"], state[f"{last}.bias"]
    if getattr(vae, "quant_conv", None) is not None:
        mix = vae.quant_conv.weight[:, :, 0, 0]
        weight, bias = torch.einsum("oi,ichw->ochw", mix, weight), mix @ bias + vae.quant_conv.bias
    state[f"{last}.weight"] = scale(vae) * weight[:half]
    state[f"{last}.bias"] = scale(vae) * (bias[:half] - shift(vae))
    return state


def canvases_of(images: Tensor, config: Mapping[str, Any], like: Tensor) -> Tensor:
    """Images as an encoder takes them.

    Args:
        images: (B, 3, H, W) in [0, 1], any H and W.
        config: its `size` is the side of the squares that images are resized to.
        like: a weight of the network; images go to its device and dtype.

    Returns:
        (B, 3, size, size), around [-1, 1].
    """
    return 2 * resize(images.to(like), (config["size"], config["size"])) - 1
