"""Protections that follow the gradient of a diffusion model's loss: AdvDM, Mist, and score distillation."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from privgen.data.patterns import pattern
from privgen.diffusion.latents import encode
from privgen.io.pixels import resize
from privgen.protection.descent import Loss
from privgen.protection.gradient import GradientMethod
from privgen.protection.objectives import DenoisingTask
from privgen.protection.surrogate import Surrogate


@dataclass(frozen=True, repr=False)
class _DenoiserMethod(GradientMethod):
    """A protection through the denoiser.

    Args:
        steps: number of gradient steps, at least 1. Each draws a new timestep and new noise.
        size: short side in pixels at which to work; None is the model's own size.
        prompt: what the image is said to show.
    """

    _: KW_ONLY
    prompt: str = ""

    def prepare(self, surrogate: Surrogate) -> None:
        DenoisingTask.of(surrogate.pipeline, self.prompt)


@dataclass(frozen=True, repr=False)
class AdvDM(_DenoiserMethod):
    """Raises the loss with which a diffusion model is fine-tuned on the image (arXiv 2302.04578)."""

    name: ClassVar[str] = "advdm"

    def objective(self, pixels: Tensor, surrogate: Surrogate, generator: torch.Generator) -> Loss:
        task = DenoisingTask.of(surrogate.pipeline, self.prompt)

        def loss(x: Tensor) -> Tensor:
            latents = encode(task.vae, x)
            return -task.loss(latents, task.draw(latents, generator))

        return loss


@dataclass(frozen=True, repr=False)
class Mist(_DenoiserMethod):
    """Raises the loss of fine-tuning, and moves the latents toward those of a texture (arXiv 2305.12683).

    Args:
        steps: see `AdvDM`.
        size: see `AdvDM`.
        prompt: see `AdvDM`.
        texture_weight: weight of the distance to the texture's latents; the loss of fine-tuning has weight 1.
    """

    name: ClassVar[str] = "mist"

    _: KW_ONLY
    texture_weight: float = 1.0

    def objective(self, pixels: Tensor, surrogate: Surrogate, generator: torch.Generator) -> Loss:
        task = DenoisingTask.of(surrogate.pipeline, self.prompt)
        with torch.no_grad():
            goal = encode(task.vae, texture_target(pixels))

        def loss(x: Tensor) -> Tensor:
            latents = encode(task.vae, x)
            semantic = task.loss(latents, task.draw(latents, generator))
            return self.texture_weight * (latents - goal).square().mean(dim=(1, 2, 3)) - semantic

        return loss


@dataclass(frozen=True, repr=False)
class ScoreDistillation(_DenoiserMethod):
    """Follows the gradient of score distillation, which needs no gradient of the denoiser (arXiv 2311.12832).

    The paper lowers the loss, which makes images smooth, and adds the distance to a texture's latents. Raising it is
    the cheap form of AdvDM.

    Args:
        steps: see `AdvDM`.
        size: see `AdvDM`.
        prompt: see `AdvDM`.
        direction: whether to lower the loss ("down", as the paper found best) or to raise it ("up").
        texture_weight: weight of the distance to the texture's latents.
    """

    name: ClassVar[str] = "sds"

    _: KW_ONLY
    direction: Literal["down", "up"] = "down"
    texture_weight: float = 0.0

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if self.direction not in ("down", "up"):
            raise ValueError(f"{self.name}: expected direction down or up, got {self.direction!r}")

    def objective(self, pixels: Tensor, surrogate: Surrogate, generator: torch.Generator) -> Loss:
        task = DenoisingTask.of(surrogate.pipeline, self.prompt)
        sign = 1 if self.direction == "down" else -1
        with torch.no_grad():
            goal = encode(task.vae, texture_target(pixels)) if self.texture_weight else None

        def loss(x: Tensor) -> Tensor:
            latents = encode(task.vae, x)
            with torch.no_grad():
                gradient = task.noise_error(latents, task.draw(latents, generator))
            value = sign * (latents * gradient).mean(dim=(1, 2, 3))
            distance = 0 if goal is None else (latents - goal).square().mean(dim=(1, 2, 3))
            return value + self.texture_weight * distance

        return loss


def texture_target(pixels: Tensor) -> Tensor:
    """A picture of strong diagonal stripes with dots, as large as images (B, 3, H, W), in [0, 1].

    Mist's own target is a picture of its name. Any picture of fine contrast everywhere serves.
    """
    side = max(pixels.shape[-2:])
    fields = [pattern(name, side) for name in ("fine diagonal stripes", "fine dots", "fine checks")]
    picture = torch.from_numpy(np.stack([np.squeeze(field) for field in fields])).to(pixels)
    spread = picture.abs().amax(dim=(1, 2), keepdim=True)
    return resize((0.5 + picture / spread / 2)[None], pixels.shape[-2:]).clamp(0, 1).expand(len(pixels), -1, -1, -1)
