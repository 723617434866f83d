"""Training of mini's autoencoder, on scenes and on crops of photographs."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from privgen.data.photos import load_photos, random_crop
from privgen.data.scenes import PREVIEW_SEED, SIZE, draw_scene
from privgen.data.sheets import picture
from privgen.models.initialise import seeded_weights
from privgen.training.loop import Batch, Task, sample_generator


@dataclass(frozen=True)
class AutoencoderRecipe:
    """An autoencoder and its training data.

    Attributes:
        size: side in pixels of the pictures that the autoencoder is for.
        channels: of the encoder's levels, finest first. Each level but the last halves the side.
        latent_channels: channels of the latents.
        norm_groups: groups of group normalisation; they divide the channels of each level.
        crop: side in pixels of the crops that it is trained on.
        photo_fraction: fraction of the crops that come from photographs; the others come from scenes.
        kl_weight: weight of the KL divergence, mean over the numbers of the latents. The squared error, mean over
            pixels and colours, has weight 1.
        l1_weight: weight of the absolute error, mean over pixels and colours.
        photos: folder of photographs.
        decoder_only: train the decoder alone, so that all latents stay as they are.
    """

    size: int = SIZE
    channels: tuple[int, ...] = (16, 24, 64, 160)
    latent_channels: int = 8
    norm_groups: int = 8
    crop: int = 64
    photo_fraction: float = 0.3
    kl_weight: float = 1e-3
    l1_weight: float = 0.1
    photos: Path = Path("privgen/data/photos/train")
    decoder_only: bool = False


def build_autoencoder(recipe: AutoencoderRecipe) -> AutoencoderKL:
    """Build an AutoencoderKL with random weights. It has no attention, so it takes pictures of any size."""
    levels = len(recipe.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        latent_channels=recipe.latent_channels,
        norm_num_groups=recipe.norm_groups,
        sample_size=recipe.size,
        mid_block_add_attention=False,
    )


class AutoencoderTask(Task):
    """Trains an autoencoder by squared and absolute error, and a light KL divergence."""

    def __init__(self, recipe: AutoencoderRecipe, seed: int) -> None:
        super().__init__()
        self.recipe, self.seed = recipe, seed
        with seeded_weights(seed):
            vae = build_autoencoder(recipe)
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
        pixels = draw_scene(index, size=self.recipe.size).pixels
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
        """Draw scenes and photographs above their reconstructions."""
        size = self.recipe.size
        scenes = [draw_scene(PREVIEW_SEED + i, size=size).pixels for i in range(6)]
        rng = np.random.Generator(np.random.PCG64(0))
        crops = [random_crop(self.photos, size, rng) for _ in range(4)] if self.photos else []
        x = torch.from_numpy(np.stack(scenes + crops)).to(self.vae.device)
        y = self.vae.decode(self.vae.encode(2 * x - 1).latent_dist.mean).sample / 2 + 0.5
        rows = [torch.cat(list(row), dim=-1) for row in (x, y)]
        return picture(torch.cat(rows, dim=-2).cpu().numpy())

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Save the autoencoder, with the scaling factor by which the latents of scenes have unit variance."""
        scenes = [draw_scene(PREVIEW_SEED + i, size=self.recipe.size).pixels for i in range(64)]
        x = torch.from_numpy(np.stack(scenes)).to(self.vae.device)
        std = float(self.vae.encode(2 * x - 1).latent_dist.mean.std())
        self.vae.register_to_config(scaling_factor=round(1 / std, 5))
        self.vae.to(memory_format=torch.contiguous_format).save_pretrained(folder / "vae")
