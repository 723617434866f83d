"""Marking again: marks of other keys over a mark, by the tool itself or by one who knows how it works."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from privgen.attacks.model_attack import ModelAttack
from privgen.attacks.registry import register
from privgen.io.residual import add_residual
from privgen.watermark.key import SECRET_BYTES, Key, Secret


if TYPE_CHECKING:
    from privgen.watermark.networks import Networks
    from privgen.watermark.write.mark_spec import Carrier
    from privgen.watermark.write.marker import Marker


NetworksLike: TypeAlias = "str | os.PathLike[str] | Networks"
"""A model by name, folder or Hub id, or networks."""


@register
@dataclass(frozen=True, repr=False)
class Remarking(ModelAttack):
    """Marks the image with random keys, one over the other. The attacker has this package and no key.

    At the default quality this is what somebody does who marks an image that is marked already. An attacker who knows
    how marks are made, but not the key, writes louder ones: a lower `psnr`.

    Args:
        strength: number of keys, 0 to 100.
        psnr: quality of each marking in dB; by default what suits the carrier.
        carrier: what marks are written with; by default what existing images are marked with.
        model: whose networks write: an embedded model's name, a folder or a Hub id.
        device: device for the networks.
        dtype: precision of their weights.

    Raises:
        UsageError: an unknown carrier, or a quality that is not positive.
        PrivgenError: the model or its networks cannot be found or read.
    """

    name = "remarking"
    kind = "A"
    unit = "keys"
    sweep = (1, 3, 10)
    bounds = (0, 100)

    strength: float = 3
    _: KW_ONLY
    model: NetworksLike = "mini"
    psnr: float | None = None
    carrier: Carrier | None = None

    def __post_init__(self) -> None:
        from privgen.watermark.write.mark_spec import MarkSpec

        super().__post_init__()
        MarkSpec(self.carrier, self.psnr)  # says what is wrong with them

    def prepare(self) -> None:
        self._marker()

    def _attack(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        marker = self._marker()
        for _ in range(round(self.strength)):
            keys = [_random_key(generator) for generator in generators]
            changes = marker.changes(list(images), keys)
            pairs = zip(images, changes, strict=True)
            images = torch.stack([add_residual(x, change, psnr=marker.spec.quality).pixels for x, change in pairs])
        return images

    def _marker(self) -> Marker:
        from privgen.watermark.write.mark_spec import MarkSpec
        from privgen.watermark.write.marker import Marker

        networks = self.model
        if isinstance(networks, (str, os.PathLike)):
            networks = _kept(os.fspath(networks), self.device, self.dtype)
        return Marker(networks, MarkSpec(self.carrier, self.psnr))


@lru_cache(maxsize=1)
def _kept(model: str, device: str, dtype: str) -> Networks:
    from privgen.hub import Placement
    from privgen.watermark.networks import Networks

    return Networks(model, Placement(device, dtype))


def _random_key(generator: torch.Generator) -> Key:
    numbers = torch.randint(256, (SECRET_BYTES,), generator=generator)
    return Key("attacker", Secret(numbers.numpy().astype(np.uint8).tobytes()))
