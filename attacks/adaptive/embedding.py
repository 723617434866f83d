"""The embedding attack: an image that looks the same, but lies far away in an autoencoder's latents."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass

import torch
from torch import Tensor

from privgen.attacks.adaptive.pgd import GradientAttack, Loss
from privgen.attacks.model_attack import PipelineLike, as_pipeline, vae_of
from privgen.attacks.registry import register
from privgen.diffusion.latents import encode
from privgen.io.pixels import resize
from privgen.models.family import Canvas


@register
@dataclass(frozen=True, repr=False)
class Embedding(GradientAttack):
    """Moves the image away from itself in the latents of an autoencoder, by small changes of its pixels.

    This is the adversarial embedding attack of WAVES (arXiv 2401.08573): PGD on the distance of latents. The attacker
    has the autoencoder, but neither the key nor the extractor. Before it is encoded, the image is resized to the
    square that the model draws on, as extractors do; what changes is the image at its own size.

    Args:
        strength: largest change of a pixel value, 0 to 255, in 1/255.
        model: a model with an autoencoder: an embedded model's name, a folder, a Hub id, or a pipeline.
        steps: number of gradient steps, at least 1.
        step_size: change of a pixel value in one step, in 1/255; by default 2.5 strength / steps.
        device: device for a model given by name.
        dtype: precision of the weights of a model given by name.
    """

    name = "embedding"

    _: KW_ONLY
    model: PipelineLike = "mini"

    def prepare(self) -> None:
        vae_of(as_pipeline(self.model, self.device, self.dtype))

    def _objective(self, image: Tensor) -> Loss:
        pipeline = as_pipeline(self.model, self.device, self.dtype)
        vae, side = vae_of(pipeline), Canvas.of_pipeline(pipeline).size

        def latents(x: Tensor) -> Tensor:
            return encode(vae, resize(x.to(vae.device), (side, side)).clamp(0, 1))

        with torch.no_grad():
            before = latents(image)
        return lambda x: -(latents(x) - before).square().mean().sqrt()
