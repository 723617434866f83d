"""How far a protection moves images in the latent spaces of autoencoders, against noise that is as strong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from privgen.attacks.distortions.degradation import JPEG
from privgen.diffusion.latents import encode
from privgen.evaluation.intervals import Measured, ci95, mean, values
from privgen.io.residual import add_residual
from privgen.metrics.quality import psnr


JPEG_QUALITY = 75
"""Quality of the JPEG files after which shifts are measured again."""


@dataclass(frozen=True)
class LatentShift:
    """The shift of images in one latent space. All values are means over images, with their intervals.

    Shifts are root mean squares, in units of the standard deviation of the latents of the original images.

    Attributes:
        shift: between the latents of an image with the protection and without it.
        noise: the same for Gaussian noise of the same PSNR.
        over_noise: shift over that of noise, image by image.
        jpeg: between the latents of the two images as JPEG files of quality 75.
        kept: shift after JPEG over that before, image by image.
    """

    shift: Measured
    noise: Measured
    over_noise: Measured
    jpeg: Measured
    kept: Measured

    def record(self) -> dict[str, Any]:
        """The values by name, and their intervals under "ci95", as records hold them."""
        measures = {field.name: getattr(self, field.name) for field in fields(self)}
        return values(measures) | {"ci95": ci95(measures)}


@torch.no_grad()
def latent_shifts(
    originals: Sequence[Tensor], changed: Sequence[Tensor], autoencoders: Mapping[str, Any], *, seed: int = 0
) -> dict[str, LatentShift]:
    """Measure how far images have moved in several latent spaces.

    Args:
        originals: images before the protection, each (3, H, W) in [0, 1]; at least one.
        changed: the same images after it, in the same order and sizes.
        autoencoders: Diffusers' autoencoders by name.
        seed: of the noise that the shift is compared with.

    Returns:
        For each autoencoder's name, its shifts.

    Raises:
        ValueError: the two lists are of different lengths or sizes or empty, or an image did not change.
    """
    if not originals or len(originals) != len(changed):
        raise ValueError(f"expected as many changed images as originals, got {len(changed)} and {len(originals)}")
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in autoencoders}
    latents: dict[str, list[Tensor]] = {name: [] for name in autoencoders}
    jpeg = JPEG(JPEG_QUALITY)
    for i, (plain, protected) in enumerate(zip(originals, changed, strict=True)):
        if plain.shape != protected.shape or torch.equal(plain, protected):
            raise ValueError(f"expected image {i} in one size and with a change")
        generator = torch.Generator().manual_seed(seed * 1_000_003 + i)
        noise = torch.randn(plain.shape, generator=generator)
        quality = float(psnr(protected[None], plain[None]))
        noisy = add_residual(plain, noise, psnr=quality, levels=255).pixels
        views = torch.stack([plain, protected, noisy])
        files = jpeg(torch.stack([plain, protected]))
        for name, vae in autoencoders.items():
            # One at a time: large images need much memory.
            own, moved, shaken = (encode(vae, view[None]) for view in views)
            own_file, moved_file = (encode(vae, view[None]) for view in files)
            found[name].append((_rms(moved - own), _rms(shaken - own), _rms(moved_file - own_file)))
            latents[name].append(own.flatten())
    return {name: _summary(rows, float(torch.cat(latents[name]).std())) for name, rows in found.items()}


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _summary(rows: Sequence[tuple[float, ...]], spread: float) -> LatentShift:
    shift, noise, jpeg = zip(*rows, strict=True)
    in_spreads = [mean([value / spread for value in row]) for row in (shift, noise, jpeg)]
    ratios = [mean([a / b for a, b in zip(*pair, strict=True)]) for pair in ((shift, noise), (jpeg, shift))]
    return LatentShift(in_spreads[0], in_spreads[1], ratios[0], in_spreads[2], ratios[1])
