"""Interfaces of the networks that the watermark uses. Any object with these methods will do."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from privgen.watermark.key import Key


N_BITS = 48
"""Number of message bits of a network whose configuration has no `n_bits`."""


class TokenMapperLike(Protocol):
    """A network from message bits to token embeddings.

    Its configuration may have `n_bits`; `tau`, the timestep that it was trained for; and `complement`. See
    `privgen.models.mappers.TokenMapper`.
    """

    config: Any

    def __call__(self, bits: Tensor, /) -> Tensor:
        """Map (B, n_bits) of 0.0 and 1.0 to (B, vectors, dim)."""
        ...


class LatentMapperLike(Protocol):
    """A network from message bits to residuals of scaled latents. Its configuration may have `n_bits`."""

    config: Any

    def __call__(self, bits: Tensor, /, *, height: int, width: int) -> Tensor:
        """Map (B, n_bits) of 0.0 and 1.0 to (B, C, height, width), where height and width are those of the latents."""
        ...


class ExtractorLike(Protocol):
    """A network from images to message logits. Its configuration may have `n_bits`."""

    config: Any

    def __call__(self, images: Tensor, /) -> Tensor:
        """Map (B, 3, H, W) in [0, 1] to (B, n_bits)."""
        ...


def reader_as_drawn(extractor: ExtractorLike) -> Callable[[Tensor], Tensor]:
    """What reads images of the very size at which they were drawn and marked.

    Args:
        extractor: one that tries several sizes has a method `read_drawn` for it, and others have not.
    """
    reader: Callable[[Tensor], Tensor] = getattr(extractor, "read_drawn", extractor)
    return reader


def config_value(network: object, name: str, default: Any) -> Any:
    """Return an entry of a network's configuration.

    Args:
        network: any object; it need not have a configuration.
        name: name of the entry.
        default: returned if the entry is missing or None.
    """
    value = getattr(getattr(network, "config", None), name, None)
    return default if value is None else value


def key_bits(keys: Sequence[Key], network: object) -> Tensor:
    """Return the messages of keys as a tensor for a network.

    Args:
        keys: B keys.
        network: its `config.n_bits` is the length of a message, by default `N_BITS`.

    Returns:
        (B, n_bits) of 0.0 and 1.0, float32, on the network's device.
    """
    n_bits = int(config_value(network, "n_bits", N_BITS))
    return torch.tensor([key.bits(n_bits) for key in keys], dtype=torch.float32, device=device_of(network))


def device_of(network: object) -> torch.device:
    """Return the device of a network; the CPU if it has no parameters or buffers."""
    if isinstance(network, torch.nn.Module):
        for tensor in (*network.parameters(), *network.buffers()):
            return tensor.device
    return torch.device("cpu")
