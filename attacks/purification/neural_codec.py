"""Neural codecs: an image compressed by a learned transform, with weights that the user has."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init

from privgen.attacks.distortions.codecs import straight_through
from privgen.attacks.model_attack import ModelAttack
from privgen.attacks.registry import register
from privgen.errors import PrivgenError
from privgen.io.foreign_weights import read_weights
from privgen.io.pixels import pad_to_multiple


FACTOR = 16
"""Pixels of a side that one place of the code stands for."""

_PEDESTAL = 2.0**-36
"""Stored are roots of what is used, a little moved, so that gradients exist at 0."""
_LEAST = 1e-6
"""Of a normalisation's constant."""


class NeuralCodec(nn.Module):
    """What the two codecs of Balle et al. do to an image: transform, round, transform back.

    Balle et al., Variational image compression with a scale hyperprior, arXiv 1802.01436: bmshj2018-factorized and
    bmshj2018-hyperprior. They differ in how many bits the rounded code takes, which a round trip does not depend on.

    Args:
        n: channels inside.
        m: channels of the code.
    """

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        encoder, decoder = (3, n, n, n, m), (m, n, n, n, 3)
        self.g_a = nn.Sequential(*self._layers(encoder, inverse=False))
        self.g_s = nn.Sequential(*self._layers(decoder, inverse=True))
        self.register_buffer("medians", torch.zeros(1, m, 1, 1))
        self.medians: Tensor

    @staticmethod
    def _layers(channels: tuple[int, ...], *, inverse: bool) -> list[nn.Module]:
        layers: list[nn.Module] = []
        for number, (n_in, n_out) in enumerate(pairwise(channels)):
            if number:
                layers.append(Normalisation(n_in, inverse=inverse))
            if inverse:
                layers.append(skip_init(nn.ConvTranspose2d, n_in, n_out, 5, stride=2, padding=2, output_padding=1))
            else:
                layers.append(skip_init(nn.Conv2d, n_in, n_out, 5, stride=2, padding=2))
        return layers

    def forward(self, images: Tensor) -> Tensor:
        """Compress and restore.

        Args:
            images: (B, 3, H, W) in [0, 1], sides multiples of 16.

        Returns:
            The same shape; values may lie outside. Rounding has the gradient of the identity.
        """
        y: Tensor = self.g_a(images)
        rounded = straight_through(y - self.medians, torch.round) + self.medians
        restored: Tensor = self.g_s(rounded)
        return restored


class Normalisation(nn.Module):
    """Generalised divisive normalisation, arXiv 1511.06281: x / sqrt(beta + gamma x^2), or times it.

    Args:
        channels: of the images.
        inverse: whether to multiply.
    """

    def __init__(self, channels: int, *, inverse: bool) -> None:
        super().__init__()
        self.inverse = inverse
        self.beta = nn.Parameter(torch.ones(channels))
        self.gamma = nn.Parameter(torch.eye(channels))

    def forward(self, x: Tensor) -> Tensor:
        beta = self.beta.clamp(min=(_LEAST + _PEDESTAL) ** 0.5).square() - _PEDESTAL
        gamma = self.gamma.clamp(min=_PEDESTAL**0.5).square() - _PEDESTAL
        norm = nn.functional.conv2d(x.square(), gamma[:, :, None, None], beta).sqrt()
        return x * norm if self.inverse else x / norm


def load_neural_codec(file: str | os.PathLike[str]) -> NeuralCodec:
    """A codec with weights from a file, in float32 and evaluation mode.

    Args:
        file: weights of CompressAI's bmshj2018-factorized or bmshj2018-hyperprior, at any quality: safetensors, or a
            state dict of PyTorch's, of which only tensors are read.

    Raises:
        PrivgenError: the file cannot be read, or holds something else.
    """
    stored = read_weights(file)
    names = ("g_a.0.weight", "g_a.6.weight", "g_s.6.weight")
    if any(name not in stored for name in names) or any(name.startswith("context_prediction") for name in stored):
        raise PrivgenError(
            f"{os.fspath(file)} does not hold a bmshj2018 codec; use the weights of CompressAI's "
            "bmshj2018_factorized or bmshj2018_hyperprior."
        )
    codec = NeuralCodec(len(stored["g_a.0.weight"]), len(stored["g_a.6.weight"]))
    wanted = {name: stored[name] for name in codec.state_dict() if name in stored}
    # The factorized codec rounds around medians, the other one around 0.
    quantiles = stored.get("entropy_bottleneck.quantiles")
    if "h_a.0.weight" not in stored and quantiles is not None:
        wanted["medians"] = quantiles[:, 0, 1].reshape(1, -1, 1, 1)
    else:
        wanted["medians"] = codec.medians
    try:
        codec.load_state_dict(wanted)
    except RuntimeError as error:
        raise PrivgenError(f"{os.fspath(file)} is incomplete: {' '.join(str(error).split())[:200]}") from error
    return codec.eval().requires_grad_(False)


@lru_cache(maxsize=1)
def _kept(file: str, device: str, dtype: str) -> NeuralCodec:
    from privgen.hub import resolve_device, resolve_dtype

    place = resolve_device(device)
    return load_neural_codec(file).to(place, resolve_dtype(dtype, place))


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class NeuralCodecRoundTrip(ModelAttack):
    """An image through a learned codec: compressed and restored.

    Args:
        strength: round trips.
        model: a file of weights, see `load_neural_codec`; or a `NeuralCodec`. Its quality is that of the weights.
    """

    name = "neural_codec"
    unit = "round trips"
    sweep = (1,)
    bounds = (0, 100)
    whole = True

    strength: float = 1
    model: Any = None

    def prepare(self) -> None:
        self._codec()

    def _codec(self) -> NeuralCodec:
        if isinstance(self.model, NeuralCodec):
            return self.model
        if not isinstance(self.model, (str, os.PathLike)):
            raise PrivgenError(
                "neural_codec needs weights, which no package has: give model= a file with those of CompressAI's "
                "bmshj2018_factorized or bmshj2018_hyperprior."
            )
        return _kept(os.fspath(self.model), self.device, self.dtype)

    def _attack(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        codec = self._codec()
        height, width = images.shape[-2:]
        weight = codec.medians
        for _ in range(int(self.strength)):
            padded = pad_to_multiple(images, FACTOR).to(weight.device, weight.dtype)
            images = codec(padded).to(images)[..., :height, :width].clamp(0, 1)
        return images
