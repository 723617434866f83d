"""Training of mini's unconditional denoiser, by which images are purified.

It works on pixels. A latent one would be cheaper to run, but mini's own UNet is one already, with the empty prompt;
whatever goes through latents loses what the autoencoder loses; and a watermark or perturbation that the encoder does
not see would leave without having been attacked. Purification needs little noise, where a picture's estimate depends
on its near surroundings only: crops of 64 pixels teach that in minutes, to a network without attention that then
takes pictures of any size.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from privgen.data.photos import load_photos, random_crop
from privgen.data.scenes import PREVIEW_SEED, draw_scene
from privgen.data.sheets import picture
from privgen.models.initialise import seeded_weights
from privgen.training.loop import Batch, Task, sample_generator


GOLDEN_RATIO = (5**0.5 - 1) / 2

PREVIEW_STEPS = (50, 100, 200)
"""Steps of noise that a preview shows and takes away."""


@dataclass(frozen=True)
class DenoiserRecipe:
    """An unconditional denoiser and its training data.

    Attributes:
        channels: of the UNet's levels, finest first.
        crop: side of the training crops in pixels.
        photo_fraction: share of crops that come from photographs; the others are scenes.
        little_noise: timesteps are u ** little_noise of the schedule, with u uniform: 1 trains all alike, 3 gives
            nearly half of the samples to the first tenth, where purification works.
        photos: folder of photographs.
    """

    channels: tuple[int, ...] = (24, 48, 96)
    crop: int = 64
    photo_fraction: float = 0.5
    little_noise: float = 3.0
    photos: Path = Path("privgen/data/photos/train")


def build_scheduler() -> DDPMScheduler:
    """The schedule of arXiv 2006.11239, which steps of noise are counted in, with v-prediction."""
    return DDPMScheduler(beta_schedule="linear", prediction_type="v_prediction")


def build_denoiser(recipe: DenoiserRecipe) -> UNet2DModel:
    """An untrained UNet without attention."""
    levels = len(recipe.channels)
    return UNet2DModel(
        sample_size=recipe.crop,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        norm_num_groups=8,
        add_attention=False,
    )


class DenoiserTask(Task):
    """Velocity prediction on crops of scenes and photographs, most of it at little noise."""

    def __init__(self, recipe: DenoiserRecipe, seed: int) -> None:
        super().__init__()
        self.recipe, self.seed = recipe, seed
        self.scheduler = build_scheduler()
        with seeded_weights(seed):
            unet = build_denoiser(recipe)
        self.unet = unet.to(memory_format=torch.channels_last)
        self.photos = load_photos(recipe.photos) if recipe.photo_fraction > 0 else ()

    def batch(self, indices: list[int]) -> Batch:
        pixels = torch.stack([torch.from_numpy(self._crop(i)) for i in indices])
        generators = [sample_generator(self.seed, i) for i in indices]
        noise = torch.stack([torch.randn(pixels.shape[1:], generator=source) for source in generators])
        # Multiples of the golden ratio fill [0, 1) evenly, so every batch covers all noise levels.
        share = (torch.tensor(indices, dtype=torch.float64) * GOLDEN_RATIO + self.seed * 0.1) % 1
        t = (share**self.recipe.little_noise * self.scheduler.config.num_train_timesteps).long()
        return {"pixels": pixels, "noise": noise, "t": t}

    def _crop(self, index: int) -> NDArray[np.float32]:
        rng = np.random.Generator(np.random.PCG64([self.seed, index]))
        side = self.recipe.crop
        if rng.random() < self.recipe.photo_fraction:
            return random_crop(self.photos, side, rng)
        pixels = draw_scene(self.seed * 100_000_000 + index).pixels
        top, left = rng.integers(pixels.shape[1] - side + 1, size=2)
        return np.ascontiguousarray(pixels[:, top : top + side, left : left + side])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x_0, noise, t = 2 * batch["pixels"] - 1, batch["noise"], batch["t"]
        x_t = self.scheduler.add_noise(x_0, noise, t).contiguous(memory_format=torch.channels_last)
        difference = self.unet(x_t, t).sample - self.scheduler.get_velocity(x_0, noise, t)
        error = difference.square().mean(dim=(1, 2, 3))
        # The estimate of x_0 is off by sqrt(1 - abar) times as much, pixels in [0, 1] by half of that.
        alpha_bar = self.scheduler.alphas_cumprod.to(t.device)[t]
        off = (1 - alpha_bar) * error / 4
        near = (t >= 50) & (t < 150)
        mean = (off * near).sum() / near.sum().clamp(min=1)
        return {"loss": error.mean(), "psnr_db_100": -10 * torch.log10(mean.clamp(min=1e-9))}

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Pictures with ever more noise, each row of them above its estimate."""
        scenes = [draw_scene(PREVIEW_SEED + i).pixels for i in range(4)]
        rng = np.random.Generator(np.random.PCG64(0))
        crops = [random_crop(self.photos, 128, rng) for _ in range(4)] if self.photos else []
        x_0 = 2 * torch.from_numpy(np.stack(scenes + crops)).to(self.unet.device) - 1
        noise = torch.stack([torch.randn(x_0.shape[1:], generator=sample_generator(0, i)) for i in range(len(x_0))])
        rows = [x_0]
        for step in PREVIEW_STEPS:
            t = torch.full((len(x_0),), step - 1, device=x_0.device)
            x_t = self.scheduler.add_noise(x_0, noise.to(x_0), t)
            alpha_bar = self.scheduler.alphas_cumprod[step - 1]
            rows += [x_t, alpha_bar**0.5 * x_t - (1 - alpha_bar) ** 0.5 * self.unet(x_t, t).sample]
        sheet = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
        return picture((sheet / 2 + 0.5).cpu().numpy())

    def export(self, folder: Path) -> None:
        """Save an ordinary Diffusers folder, that of a `DDPMPipeline`."""
        self.unet.to(memory_format=torch.contiguous_format)
        DDPMPipeline(unet=self.unet, scheduler=self.scheduler).save_pretrained(folder)
