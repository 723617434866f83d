"""Pre-training of the extractor, with the residual encoder R(m), in the latent space of a frozen autoencoder.

"Your Text Encoder Can Be An Object-Level Watermarking Controller" (https://huggingface.co/papers/2503.11945): a linear
residual encoder adds a pattern to the latents, the decoder makes pixels of it, an attack disturbs them, the
extractor reads the message. Here the budget is exact: every marked image has the PSNR that its step asks for.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from privgen.data.photos import load_photos, random_crop
from privgen.data.scenes import draw_scene
from privgen.diffusion.loop import Batch, Task, sample_generator
from privgen.models.watermark import Extractor, LatentMapper


Attack = Callable[..., Tensor]
"""Called as `attack(images, generator=[one for each image])`, images (B, 3, H, W) in [0, 1]."""


@dataclass(frozen=True)
class ExtractorRecipe:
    """An extractor, its residual encoder and their training.

    Attributes:
        vae: folder of the frozen autoencoder.
        photos: folder of photographs.
        n_bits: bits of a message.
        photo_share: share of the images that are photographs.
        psnr_from: quality at which training starts, in dB.
        psnr_to: quality that it reaches after half the run.
        samples: of the whole run: steps times batch size.
        clean_images: images, none of them marked, on which the logits are whitened at the end.
    """

    vae: Path = Path("runs/vae/model/vae")
    photos: Path = Path("privgen/data/photos/train")
    n_bits: int = 48
    photo_share: float = 0.4
    psnr_from: float = 28.0
    psnr_to: float = 39.0
    samples: int = 40_000
    clean_images: int = 2_048


def at_psnr(image: Tensor, residual: Tensor, psnr_db: Tensor) -> Tensor:
    """Add a residual, scaled per image to the given quality.

    Args:
        image: shape (B, 3, H, W) in [0, 1].
        residual: the same shape.
        psnr_db: shape (B,), PSNR of the sum before it is clipped to [0, 1].
    """
    rms = residual.square().mean(dim=(1, 2, 3)).sqrt()
    gain = 10 ** (-psnr_db / 20) / (rms + 1e-8)
    return (image + gain[:, None, None, None] * residual).clamp(0, 1)


class ExtractorTask(Task):
    """Binary cross-entropy of the message, read after an attack."""

    def __init__(self, recipe: ExtractorRecipe, seed: int, attack: Attack | None = None) -> None:
        super().__init__()
        self.recipe, self.seed, self.attack = recipe, seed, attack
        self.vae: AutoencoderKL = AutoencoderKL.from_pretrained(recipe.vae).requires_grad_(False)
        self.vae.to(memory_format=torch.channels_last)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)  # noqa: TID251 - layers are initialised from the global generator only
            self.mapper = LatentMapper(recipe.n_bits, self.vae.config.latent_channels)
            self.extractor = Extractor(recipe.n_bits)
        self.extractor.to(memory_format=torch.channels_last)
        self.photos = load_photos(recipe.photos) if recipe.photo_share > 0 else ()

    def batch(self, indices: list[int]) -> Batch:
        rngs = [np.random.Generator(np.random.PCG64([self.seed, 1, i])) for i in indices]
        photo = [rng.random() < self.recipe.photo_share for rng in rngs]
        pixels = [
            random_crop(self.photos, 128, rng) if is_photo else draw_scene(i).pixels
            for i, is_photo, rng in zip(indices, photo, rngs, strict=True)
        ]
        progress = torch.tensor(indices) / self.recipe.samples
        decoded = [not is_photo and rng.random() < 0.5 for is_photo, rng in zip(photo, rngs, strict=True)]
        return {
            "pixels": torch.from_numpy(np.stack(pixels)).contiguous(memory_format=torch.channels_last),
            "bits": torch.from_numpy(np.stack([rng.integers(2, size=self.recipe.n_bits) for rng in rngs])),
            "as_decoded": torch.tensor(decoded),
            "ramp": (2 * progress).clamp(max=1),
            "index": torch.tensor(indices),
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        marked = self.mark(batch)
        if self.attack is not None:
            generators = [sample_generator(self.seed, int(i)) for i in batch["index"]]
            marked = self.attack(marked, generator=generators)
        logits = self.extractor(marked)
        target = batch["bits"].to(logits)
        loss = F.binary_cross_entropy_with_logits(logits, target)
        return {"loss": loss, "bit_accuracy": ((logits > 0) == (target > 0.5)).float().mean()}

    def mark(self, batch: Batch) -> Tensor:
        """Marked images at the quality of this point of the run, before any attack."""
        x = batch["pixels"]
        with torch.no_grad():
            z = self.vae.encode(2 * x - 1).latent_dist.mean
            clean = self.vae.decode(z).sample / 2 + 0.5
        residual = self.mapper(batch["bits"], *z.shape[-2:]) / self.vae.config.scaling_factor
        difference = self.vae.decode(z + residual).sample / 2 + 0.5 - clean
        base = torch.where(batch["as_decoded"][:, None, None, None], clean.clamp(0, 1), x)
        recipe = self.recipe
        return at_psnr(base, difference, recipe.psnr_from + (recipe.psnr_to - recipe.psnr_from) * batch["ramp"])

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Clean images, marked images, and the difference ten times enlarged."""
        batch = self.batch(list(range(8)))
        batch["ramp"] = torch.ones(8)
        batch = {name: value.to(self.vae.device) for name, value in batch.items()}
        marked = self.mark(batch)
        rows = [batch["pixels"], marked, 0.5 + 10 * (marked - batch["pixels"])]
        pixels = torch.cat([torch.cat(list(row.clamp(0, 1)), dim=2) for row in rows], dim=1).cpu()
        return Image.fromarray((pixels.permute(1, 2, 0) * 255).round().byte().numpy())

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Whiten on clean images, set the strength that gives the final quality, and save both networks."""
        self.extractor.whiten(self._clean_logits())
        self.mapper.register_to_config(strength=self._calibrate())
        for name, network in (("extractor", self.extractor), ("latent_mapper", self.mapper)):
            network.to(memory_format=torch.contiguous_format).save_pretrained(folder / name)

    def _clean_logits(self, batch_size: int = 64) -> Tensor:
        first = self.recipe.samples  # images that training did not draw
        logits: list[Tensor] = []
        for start in range(first, first + self.recipe.clean_images, batch_size):
            pixels = self.batch(list(range(start, start + batch_size)))["pixels"]
            logits.append(self.extractor(pixels.to(self.vae.device)))
        return torch.cat(logits)

    def _calibrate(self, images: int = 32, rounds: int = 6) -> float:
        """RMS of the residual at which the decoded images reach `psnr_to` on average."""
        x = torch.from_numpy(np.stack([draw_scene(self.recipe.samples + i).pixels for i in range(images)]))
        z = self.vae.encode(2 * x.to(self.vae.device) - 1).latent_dist.mean
        bits = torch.randint(2, (images, self.recipe.n_bits), generator=sample_generator(self.seed, 0)).to(z.device)
        clean, strength = self.vae.decode(z).sample, float(self.mapper.config.strength)
        for _ in range(rounds):
            self.mapper.register_to_config(strength=strength)
            marked = self.vae.decode(z + self.mapper(bits) / self.vae.config.scaling_factor).sample
            psnr = (10 * torch.log10(4 / (marked - clean).square().mean(dim=(1, 2, 3)))).mean()
            strength *= 10 ** ((float(psnr) - self.recipe.psnr_to) / 20)
        return round(strength, 5)
