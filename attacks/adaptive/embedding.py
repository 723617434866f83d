"""The embedding attack: an image that looks the same, far away in an autoencoder's latents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from privgen.attacks.adaptive.pgd import GradientAttack, Loss
from privgen.attacks.purification.denoiser import encode_latents
from privgen.attacks.purification.regeneration import as_pipeline
from privgen.attacks.registry import register
from privgen.errors import PrivgenError
from privgen.io.pixels import resize


FALLBACK_SIDE = 512
"""Side that an autoencoder which does not tell is fed with."""


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class Embedding(GradientAttack):
    """The adversarial embedding attack of WAVES, arXiv 2401.08573: PGD on the distance of latents.

    The attacker has the autoencoder, but neither key nor extractor. The image is squeezed to the autoencoder's own
    side before it is encoded, as extractors do; what is changed is the image at its own size.

    Args:
        strength: largest change of a value, in 1/255.
        model: a model with an autoencoder, by name, folder or Hub id; or a pipeline.
        steps: see `GradientAttack`, as the others.
    """

    name = "embedding"

    def prepare(self) -> None:
        self._vae()

    def _objective(self, image: Tensor) -> Loss:
        vae = self._vae()
        side = int(getattr(vae.config, "sample_size", None) or FALLBACK_SIDE)

        def encode(x: Tensor) -> Tensor:
            squeezed = resize(x.to(next(vae.parameters()).device), (side, side)).clamp(0, 1)
            return encode_latents(vae, 2 * squeezed - 1)

        with torch.no_grad():
            before = encode(image)
        return lambda x: -(encode(x) - before).square().mean().sqrt()

    def _vae(self) -> Any:
        pipeline = as_pipeline(self.model, self.device, self.dtype)
        vae = getattr(pipeline, "vae", None)
        if vae is None:
            raise PrivgenError(f"{type(pipeline).__name__} has no autoencoder; use another model.")
        return vae
