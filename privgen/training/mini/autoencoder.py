"""Training of mini's autoencoder on scenes and crops of photographs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from privgen.data.photos import load_photos, random_crop
from privgen.data.scenes import PREVIEW_SEED, draw_scene
from privgen.models.initialise import seeded_weights
from privgen.training.loop import Batch, Task, sample_generator


@dataclass(frozen=True)
class VaeRecipe:
    """An autoencoder and its training data.

    Attributes:
        channels: of the encoder's levels, finest first.
        latent_channels: channels of the latent.
        crop: side of the training crops in pixels.
        photo_fraction: share of crops that come from photographs.
        kl_weight: of the mean KL divergence a latent number, beside the mean squared error a pixel.
        l1_weight: of the mean absolute error.
        photos: folder of photographs.
        decoder_only: keep the encoder, and so all latents, as they are.
    """

    channels: tuple[int, ...] = (16, 24, 64, 160)
    latent_channels: int = 8
    crop: int = 64
    photo_fraction: float = 0.3
    kl_weight: float = 1e-3
    l1_weight: float = 0.1
    photos: Path = Path("privgen/data/photos/train")
    decoder_only: bool = False


def build_vae(recipe: VaeRecipe) -> AutoencoderKL:
    """An untrained AutoencoderKL with factor 8; without attention, so that it takes pictures of any size."""
    levels = len(recipe.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        latent_channels=recipe.latent_channels,
        norm_num_groups=8,
        sample_size=128,
        mid_block_add_attention=False,
    )


class VaeTask(Task):
    """Mean squared and absolute error, and a light KL divergence."""

    def __init__(self, recipe: VaeRecipe, seed: int, vae: AutoencoderKL | None = None) -> None:
        super().__init__()
        self.recipe, self.seed = recipe, seed
        if vae is None:
            with seeded_weights(seed):
                vae = build_vae(recipe)
        self.vae = vae.to(memory_format=torch.channels_last)
        if recipe.decoder_only:
            self.vae.encoder.requires_grad_(False)
            self.vae.quant_conv.requires_grad_(False)
        self.photos = load_photos(recipe.photos) if recipe.photo_fraction > 0 else ()

    def batch(self, indices: list[int]) -> Batch:
        side = self.recipe.crop // 2 ** (len(self.recipe.channels) - 1)
        pixels = torch.stack([torch.from_numpy(self._crop(i)) for i in indices])
        shape = (self.recipe.latent_channels, side, side)
        noise = torch.stack([torch.randn(shape, generator=sample_generator(self.seed, i)) for i in indices])
        return {"pixels": pixels.to(memory_format=torch.channels_last), "noise": noise}

    def _crop(self, index: int) -> NDArray[np.float32]:
        rng = np.random.Generator(np.random.PCG64([self.seed, index]))
        side = self.recipe.crop
        if rng.random() < self.recipe.photo_fraction:
            return random_crop(self.photos, side, rng)
        pixels = draw_scene(index).pixels
        top, left = rng.integers(pixels.shape[1] - side + 1, size=2)
        return np.ascontiguousarray(pixels[:, top : top + side, left : left + side])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x = 2 * batch["pixels"] - 1
        posterior = self.vae.encode(x).latent_dist
        z = posterior.mean + posterior.std * batch["noise"]
        error = self.vae.decode(z).sample - x
        mse, l1 = error.square().mean(), error.abs().mean()
        kl = posterior.kl().mean() / z[0].numel()
        loss = mse + self.recipe.l1_weight * l1 + self.recipe.kl_weight * kl
        return {"loss": loss, "mse": mse, "kl": kl, "psnr_db": 10 * torch.log10(4 / mse)}

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Originals above their reconstructions."""
        scenes = [draw_scene(PREVIEW_SEED + i).pixels for i in range(6)]
        rng = np.random.Generator(np.random.PCG64(0))
        crops = [random_crop(self.photos, 128, rng) for _ in range(4)] if self.photos else []
        x = torch.from_numpy(np.stack(scenes + crops)).to(self.vae.device)
        y = self.vae.decode(self.vae.encode(2 * x - 1).latent_dist.mean).sample / 2 + 0.5
        return _grid(torch.stack([x, y.clamp(0, 1)]).cpu())

    def export(self, folder: Path) -> None:
        """Save the autoencoder, scaled so that the latents of scenes have unit variance."""
        self.vae.register_to_config(scaling_factor=round(1 / self._latent_std(), 5))
        self.vae.to(memory_format=torch.contiguous_format).save_pretrained(folder / "vae")

    @torch.no_grad()
    def _latent_std(self) -> float:
        x = torch.from_numpy(np.stack([draw_scene(PREVIEW_SEED + i).pixels for i in range(64)]))
        return float(self.vae.encode(2 * x.to(self.vae.device) - 1).latent_dist.mean.std())


def _grid(rows: Tensor) -> Image.Image:
    """Rows of pictures (R, N, 3, H, W) in [0, 1] as one picture."""
    r, n, c, h, w = rows.shape
    flat = rows.permute(0, 3, 1, 4, 2).reshape(r * h, n * w, c)
    return Image.fromarray((flat * 255).round().to(torch.uint8).numpy())
