"""What the adversary does to images before it trains on them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from privgen.attacks import JPEG, BaseAttack, DiffPure, GrIDPure, Regeneration, load_denoiser
from privgen.attacks.purification.impress import Impress
from privgen.errors import PrivgenError
from privgen.evaluation.protection.plan import NONE
from privgen.hub import EMBEDDED
from privgen.io.pixels import resize


JPEG_QUALITY = 75
IMPRESS_STEPS = 100


def purify(name: str, images: list[Tensor], model: str, pipeline: Any, generator: torch.Generator) -> list[Tensor]:
    """Purify images, each by itself.

    Args:
        name: of `privgen.evaluation.protection.plan.PURIFICATIONS`.
        images: (3, H, W) each, in [0, 1].
        model: name of the adversary's model.
        pipeline: of the adversary's model, which purifies.
        generator: where the randomness comes from.

    Returns:
        The same sizes and range.

    Raises:
        PrivgenError: the model lacks what the purification needs.
    """
    if name == NONE:
        return images
    with torch.no_grad():
        if name == "resize":
            return [_halved(image) for image in images]
        attack = _attack(name, model, pipeline)
        return [attack(image, generator=generator) for image in images]


def _halved(image: Tensor) -> Tensor:
    """An image at half its size, and back."""
    height, width = image.shape[1:]
    small = resize(image[None], (max(height // 2, 1), max(width // 2, 1)))
    return resize(small, (height, width))[0].clamp(0, 1)


def _attack(name: str, model: str, pipeline: Any) -> BaseAttack:
    if name == "jpeg":
        return JPEG(JPEG_QUALITY)
    if name == "impress":
        return Impress(IMPRESS_STEPS, model=pipeline, fit="whole")
    if name == "regeneration":
        return Regeneration(model=pipeline, fit="whole")
    # The pixel denoiser that comes with mini, for models of its world; others purify in their own latents.
    denoiser: Any = pipeline
    if model in EMBEDDED:
        denoiser = load_denoiser("mini", device=str(pipeline.device))
    if name == "diffpure":
        return DiffPure(model=denoiser, fit="whole")
    if name == "gridpure":
        return GrIDPure(model=denoiser, fit="whole")
    raise PrivgenError(f"There is no purification {name!r}.")
