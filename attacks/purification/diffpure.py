"""DiffPure: noise on an image, and a diffusion model that takes it away, with all else that looks like noise."""

from __future__ import annotations

import os
from dataclasses import KW_ONLY, dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from privgen.attacks.draws import Draws
from privgen.attacks.purification.denoiser import Denoiser, Space, as_denoiser
from privgen.attacks.purification.fit import FittedAttack
from privgen.attacks.purification.reverse import (
    MODES,
    Mode,
    add_noise,
    count_evaluations,
    reverse_ddpm,
    reverse_ode,
    reverse_sde,
)
from privgen.attacks.registry import register


if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def purify(
    denoiser: Denoiser,
    images: Tensor,
    t_star: int,
    generators: Draws,
    *,
    mode: Mode = "ddpm",
    steps: int | None = None,
) -> Tensor:
    """Add noise to images and take it away, once: arXiv 2205.07460, section 3.1.

    Args:
        denoiser: the model.
        images: (B, 3, H, W) in [0, 1]; sides of any length.
        t_star: noise, in steps of the model's schedule. At 0, pixels stay as they are, and latents are decoded again.
        generators: one for each image.
        mode: how noise is taken away: see `privgen.attacks.purification.reverse`.
        steps: denoising steps; None takes the mode's own number.

    Returns:
        (B, 3, H, W) in [0, 1] or slightly outside, on the denoiser's device.
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


def steps_of(denoiser: Denoiser, noise: float) -> int:
    """Return steps of a schedule of 1000 as steps of the denoiser's own, at least 1."""
    return max(round(noise * denoiser.steps / 1000), 1)


@dataclass(frozen=True, repr=False)
class DenoiserAttack(FittedAttack):
    """An attack with an unconditional denoiser.

    Args:
        strength: see the subclass.
        model: an embedded model's name, a folder, a Hub id, a Diffusers pipeline, or a `Denoiser`.
        space: where noise is added, "pixel" or "latent". By default the pixel denoiser of a model given by name, if it
            has one; else whatever the model is.
        fit: what happens to images that are larger than the model's, see `FittedAttack`.
    """

    _: KW_ONLY
    model: str | os.PathLike[str] | DiffusionPipeline | Denoiser = "mini"
    space: Space | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.space not in (None, "pixel", "latent"):
            raise ValueError(f"{self.name}: expected space pixel or latent, got {self.space!r}")

    def prepare(self) -> None:
        self._denoiser()

    def _denoiser(self) -> Denoiser:
        return as_denoiser(self.model, self.space, self.device, self.dtype)

    def _canvas(self) -> int | None:
        return self._denoiser().canvas


@register
@dataclass(frozen=True, repr=False)
class DiffPure(DenoiserAttack):
    """Adds noise to the image, and takes it away with a diffusion model (DiffPure, arXiv 2205.07460).

    Args:
        strength: t*, the noise, 0 to 1000, in steps of a schedule of 1000.
        mode: how noise is taken away: "ddpm" by the model's own chain, "ode" by the probability-flow ODE, "sde" by the
            reverse SDE.
        steps: denoising steps, at least 1; by default every timestep, and 20 steps of two evaluations for "ode".
        repeats: how often noise is added and taken away, at least 1.
        model: an embedded model's name, a folder, a Hub id, a Diffusers pipeline, or a `Denoiser`.
        space: where noise is added, "pixel" or "latent". By default the pixel denoiser of a model given by name, if it
            has one; else whatever the model is.
        fit: what happens to images that are larger than the model's: "resize" attacks a small copy and adds the
            enlarged change, "tiles" attacks overlapping tiles, and "whole" the image in one piece. See `FittedAttack`.
        device: device for a model given by name.
        dtype: precision of the weights of a model given by name.
    """

    name = "diffpure"
    unit = "steps of 1000"
    sweep = (75, 85, 100, 125, 150)
    bounds = (0, 1000)

    strength: float = 100
    _: KW_ONLY
    mode: Mode = "ddpm"
    steps: int | None = None
    repeats: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"diffpure: expected mode {', '.join(MODES)}, got {self.mode!r}")
        if self.repeats < 1 or (self.steps is not None and self.steps < 1):
            raise ValueError(f"diffpure: expected repeats and steps >= 1, got {self.repeats} and {self.steps}")

    def _steps(self) -> int:
        t_star = steps_of(self._denoiser(), self.strength)
        return self.repeats * count_evaluations(self.mode, t_star, self.steps)

    def _purify(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        denoiser = self._denoiser()
        t_star = steps_of(denoiser, self.strength)
        for _ in range(self.repeats):
            images = purify(denoiser, images, t_star, generators, mode=self.mode, steps=self.steps)
            images = images.clamp(0, 1)
        return images
