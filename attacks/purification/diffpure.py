"""DiffPure: noise on an image, and a diffusion model to take it away again, with whatever else looks like noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from privgen.attacks.model_attack import ModelAttack
from privgen.attacks.purification.denoiser import Denoiser, Space, as_denoiser
from privgen.attacks.purification.reverse import add_noise, reverse_ddpm, reverse_ode, reverse_sde
from privgen.attacks.registry import register


Mode: TypeAlias = Literal["ddpm", "ode", "sde"]
MODES: tuple[Mode, ...] = get_args(Mode)


def purify(
    denoiser: Denoiser,
    images: Tensor,
    t_star: int,
    generators: list[torch.Generator],
    *,
    mode: Mode = "ddpm",
    steps: int | None = None,
) -> Tensor:
    """Add noise and take it away, once: arXiv 2205.07460, section 3.1.

    Args:
        denoiser: the model.
        images: (B, 3, H, W) in [0, 1]; sides of any length.
        t_star: noise, in steps of the model's schedule; 0 leaves pixels as they are, and passes latents through the
            autoencoder.
        generators: one for each image.
        mode: how to come back: see `privgen.attacks.purification.reverse`.
        steps: of the way back; None takes the mode's own.

    Returns:
        (B, 3, H, W) in [0, 1] and a little beyond, on the denoiser's device.
    """
    x_0, size = denoiser.encode(images)
    if t_star > 0:
        x_t = add_noise(denoiser, x_0, t_star, generators)
        if mode == "ode":
            x_0 = reverse_ode(denoiser, x_t, t_star, steps)
        else:
            reverse = reverse_ddpm if mode == "ddpm" else reverse_sde
            x_0 = reverse(denoiser, x_t, t_star, generators, steps)
    return denoiser.decode(x_0, size)


@dataclass(frozen=True, kw_only=True, repr=False)
class DenoiserAttack(ModelAttack):
    """An attack with an unconditional denoiser.

    Args:
        model: the name of an embedded model, a folder or a Hub id, a Diffusers pipeline, or a `Denoiser`.
        space: "pixel" or "latent": where noise is added. By default a named model's pixel denoiser where it has one,
            or else what the model is.
    """

    space: Space | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.space not in (None, "pixel", "latent"):
            raise ValueError(f"{self.name}: expected space pixel or latent, got {self.space!r}")

    def prepare(self) -> None:
        self._denoiser()

    def _denoiser(self) -> Denoiser:
        return as_denoiser(self.model, self.space, self.device, self.dtype)


@register
@dataclass(frozen=True, kw_only=True, repr=False)
class DiffPure(DenoiserAttack):
    """Nie et al., Diffusion models for adversarial purification, arXiv 2205.07460.

    Args:
        strength: t*, the noise: steps of a schedule of 1000.
        mode: "ddpm", the model's own chain; "ode", the probability-flow ODE; or "sde", the reverse SDE.
        steps: of the way back; by default every timestep, and for "ode" 20 steps of two evaluations.
        repeats: how often noise is added and taken away.
    """

    name = "diffpure"
    unit = "steps of 1000"
    sweep = (75, 85, 100, 125, 150)
    bounds = (0, 1000)

    strength: float = 100
    mode: Mode = "ddpm"
    steps: int | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"diffpure: expected mode {', '.join(MODES)}, got {self.mode!r}")
        if self.repeats < 1 or (self.steps is not None and self.steps < 1):
            raise ValueError(f"diffpure: expected repeats and steps >= 1, got {self.repeats} and {self.steps}")

    def _attack(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        denoiser = self._denoiser()
        t_star = max(round(self.strength * denoiser.steps / 1000), 1)
        for _ in range(self.repeats):
            images = purify(denoiser, images, t_star, generators, mode=self.mode, steps=self.steps)
            images = images.clamp(0, 1)
        return images
