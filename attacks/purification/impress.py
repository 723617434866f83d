"""IMPRESS: look for a close image that the autoencoder keeps as it is."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from privgen.attacks.draws import draw_normal
from privgen.attacks.model_attack import PipelineLike, as_pipeline, size_of, vae_of
from privgen.attacks.purification.fit import FittedAttack
from privgen.attacks.registry import register
from privgen.attacks.steps import step_done
from privgen.diffusion.latents import decode, encode
from privgen.errors import PrivgenError
from privgen.io.pixels import pad_to_multiple
from privgen.metrics.quality import ssim
from privgen.metrics.st_lpips import SMALLEST, st_lpips
from privgen.models.family import patch_of


@register
@dataclass(frozen=True, repr=False)
class Impress(FittedAttack):
    """Optimises the image until an autoencoder reproduces it, close to where it was (IMPRESS, arXiv 2310.19248).

    A protection against learning makes an autoencoder's reconstruction differ from the image. So this minimises the
    mean squared error between the two, plus a penalty for leaving the image: weight * max(distance - tolerance, 0).
    The paper measures the distance by LPIPS. Here it is 1 - SSIM, or ST-LPIPS. As in the paper, the search starts from
    the image with noise, and pixels are counted from -1 to 1.

    Args:
        strength: number of steps, 0 to 10000; the paper takes 3000.
        model: a model with an autoencoder: an embedded model's name, a folder, a Hub id, or a pipeline.
        lr: step size of the optimiser Adam, above 0.
        noise: standard deviation of the noise at the start, at least 0.
        weight: of the penalty, at least 0.
        tolerance: distance up to which there is no penalty, at least 0.
        distance: "ssim" for 1 - SSIM; "st_lpips", which needs `pip install 'privgen[perceptual]'`.
        fit: what happens to images that are larger than the model's, see `DiffPure`.
        device: device for a model given by name.
        dtype: precision of the weights of a model given by name.
    """

    name = "impress"
    unit = "steps"
    sweep = (30, 100, 300)
    bounds = (0, 10000)
    whole = True

    strength: float = 100
    _: KW_ONLY
    model: PipelineLike = "mini"
    lr: float = 0.01
    noise: float = 0.1
    weight: float = 0.1
    tolerance: float = 0.1
    distance: str = "ssim"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not (self.lr > 0 and min(self.noise, self.weight, self.tolerance) >= 0):
            raise ValueError(
                f"impress: expected lr above 0, and noise, weight and tolerance of at least 0, got {self.lr}, "
                f"{self.noise}, {self.weight} and {self.tolerance}"
            )
        if self.distance not in ("ssim", "st_lpips"):
            raise ValueError(f"impress: expected the distance ssim or st_lpips, got {self.distance!r}")

    def prepare(self) -> None:
        vae_of(as_pipeline(self.model, self.device, self.dtype))
        if self.distance == "st_lpips":
            st_lpips(*torch.zeros(2, 1, 3, SMALLEST, SMALLEST))

    def _canvas(self) -> int | None:
        return size_of(as_pipeline(self.model, self.device, self.dtype))

    def _steps(self) -> int:
        return int(self.strength)

    def _purify(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        vae = vae_of(as_pipeline(self.model, self.device, self.dtype))
        smallest = SMALLEST if self.distance == "st_lpips" else 11
        if min(images.shape[-2:]) < smallest:
            raise PrivgenError(f"impress: an image has a side below {smallest} pixels; use larger images.")
        # Pixels in [0, 1] are half of those in [-1, 1], and so are noise and steps.
        given = images.detach().to(torch.float32)
        pixels = (given + self.noise / 2 * draw_normal(given, generators)).clamp(0, 1)
        with torch.enable_grad():
            pixels.requires_grad_()
            optimiser = torch.optim.Adam([pixels], lr=self.lr / 2)
            for _ in range(int(self.strength)):
                (pixels.grad,) = torch.autograd.grad(self._loss(vae, pixels, given).sum(), pixels)
                optimiser.step()
                with torch.no_grad():
                    pixels.clamp_(0, 1)
                step_done(len(pixels))
        return pixels.detach()

    def _loss(self, vae: Any, pixels: Tensor, given: Tensor) -> Tensor:
        """What is minimised, (B,)."""
        height, width = pixels.shape[-2:]
        again = decode(vae, encode(vae, pad_to_multiple(pixels, patch_of(vae))))[..., :height, :width]
        error = 4 * (again.to(pixels) - pixels).square().mean((1, 2, 3))
        away = st_lpips(pixels, given) if self.distance == "st_lpips" else 1 - ssim(pixels, given)
        return error + self.weight * (away - self.tolerance).clamp(min=0)
