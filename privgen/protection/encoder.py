"""The encoder attack: an image that looks the same, and lies elsewhere in the latents of autoencoders."""

import os
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from privgen.diffusion.latents import encode
from privgen.io.fingerprints import file_fingerprint
from privgen.io.images import load_image
from privgen.io.pixels import resize
from privgen.protection.descent import Loss
from privgen.protection.gradient import GradientMethod
from privgen.protection.objectives import latent_distance
from privgen.protection.surrogate import Surrogate


_LARGEST = 512  # pixels; adversaries train at about this size


@dataclass(frozen=True, repr=False)
class EncoderAttack(GradientMethod):
    """Moves the latents of an image away from where they are, or toward those of another image.

    This is PhotoGuard's encoder attack (arXiv 2302.06588), within a PSNR instead of the maximum norm. With several
    autoencoders it moves the latents of all.

    Args:
        steps: number of gradient steps, at least 1.
        size: short side in pixels at which to work; None is the model's own size, and with autoencoders that are named
            one by one that of the image, at most 512.
        toward: image file whose latents the latents move toward; None moves them away from where they are.
    """

    name: ClassVar[str] = "encoder"

    _: KW_ONLY
    toward: str | os.PathLike[str] | None = None

    def prepare(self, surrogate: Surrogate) -> None:
        _ = surrogate.encoders
        if self.toward is not None:
            load_image(self.toward)

    def made_by(self) -> str:
        return repr(self) if self.toward is None else f"{self!r}, image={file_fingerprint(Path(self.toward))[:16]}"

    def side_for(self, pixels: Tensor, surrogate: Surrogate) -> int:
        if not surrogate.autoencoders:
            return super().side_for(pixels, surrogate)
        return max(min(min(pixels.shape[-2:]), _LARGEST) // 8 * 8, 16)

    def objective(self, pixels: Tensor, surrogate: Surrogate, generator: torch.Generator) -> Loss:
        pairs = [(vae, *self._goal(vae, pixels)) for vae in surrogate.encoders]
        sign = -1 if self.toward is None else 1

        def loss(x: Tensor) -> Tensor:
            distances = [latent_distance(vae, x, goal) / spread for vae, goal, spread in pairs]
            return sign * torch.stack(distances).sum()

        return loss

    @torch.no_grad()
    def _goal(self, vae: Any, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The latents to move from or toward, and the variance of the image's own, so that all autoencoders count."""
        own = encode(vae, pixels)
        if self.toward is None:
            return own, own.var()
        other = resize(load_image(self.toward).pixels[None].to(pixels), pixels.shape[-2:]).clamp(0, 1)
        return encode(vae, other), own.var()
