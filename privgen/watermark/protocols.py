"""What the watermark asks of networks, whoever wrote them."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from privgen.watermark.key import Key


N_BITS = 48
"""Bits of a message for networks whose configuration does not say."""


class TokenMapperLike(Protocol):
    """Message bits to token embeddings.

    Its configuration may hold `n_bits`, and `tau`, the timestep that it was trained for, and `complement`: see
    `privgen.models.mappers.TokenMapper`.
    """

    config: Any

    def __call__(self, bits: Tensor, /) -> Tensor:
        """Map (B, n_bits) of 0.0 and 1.0 to (B, vectors, dim)."""
        ...


class LatentMapperLike(Protocol):
    """Message bits to latent residuals, in units of scaled latents. Its configuration may hold `n_bits`."""

    config: Any

    def __call__(self, bits: Tensor, /, *, height: int, width: int) -> Tensor:
        """Map (B, n_bits) of 0.0 and 1.0 to (B, C, height, width), height and width being those of the latents."""
        ...


class ExtractorLike(Protocol):
    """Images to message logits. Its configuration may hold `n_bits`."""

    config: Any

    def __call__(self, images: Tensor, /) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to (B, n_bits)."""
        ...


def config_value(network: object, name: str, default: Any) -> Any:
    """An entry of a network's configuration.

    Args:
        network: any object; one without a configuration has no entries.
        name: the entry.
        default: what a missing entry, or None, means.
    """
    value = getattr(getattr(network, "config", None), name, None)
    return default if value is None else value


def key_bits(keys: Sequence[Key], network: object) -> Tensor:
    """Messages of keys, as a network takes them.

    Args:
        keys: B keys.
        network: its `config.n_bits` is the length of a message; `N_BITS` without.

    Returns:
        (B, n_bits) of 0.0 and 1.0, float32, on the device of the network.
    """
    n_bits = int(config_value(network, "n_bits", N_BITS))
    return torch.tensor([key.bits(n_bits) for key in keys], dtype=torch.float32, device=device_of(network))


def device_of(network: object) -> torch.device:
    """Where a network computes; the CPU for one that holds no tensors."""
    if isinstance(network, torch.nn.Module):
        for tensor in (*network.parameters(), *network.buffers()):
            return tensor.device
    return torch.device("cpu")
