"""Training of mini's unconditional denoiser, which purifies images.

It works on pixels. A denoiser of latents would be cheaper to run, but mini's own UNet is one already, with the empty
prompt. Besides, images that go through latents lose what the autoencoder loses, and a watermark or perturbation that
the encoder does not see would disappear without an attack. Purification needs little noise. At little noise the
estimate of a pixel depends on its near surroundings only, so crops teach it in minutes, to a network without attention
that then takes pictures of any size.
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
from privgen.data.scenes import PREVIEW_SEED, SIZE, draw_scene
from privgen.data.sheets import picture
from privgen.diffusion.parameterisation import NoiseLevel, predict_original
from privgen.models.initialise import seeded_weights
from privgen.training.loop import Batch, Task, sample_generator
from privgen.training.scene_latents import scene_seed
from privgen.training.timesteps import golden_times


PREVIEW_STEPS = (50, 100, 200)
"""Steps of noise in a preview."""


@dataclass(frozen=True)
class DenoiserRecipe:
    """An unconditional denoiser and its training data.

    Attributes:
        channels: of the UNet's levels, finest first.
        norm_groups: groups of group normalisation; they divide the channels of each level.
        size: side in pixels of the scenes that crops are cut out of, and of the pictures in previews.
        crop: side in pixels of the crops that it is trained on.
        photo_fraction: fraction of the crops that come from photographs; the others come from scenes.
        little_noise: exponent that favours little noise. Timesteps are u ** little_noise of the schedule, with u
            uniform in [0, 1): 1 trains all timesteps alike, 3 gives nearly half of the samples to the first tenth,
            where purification works.
        photos: folder of photographs.
    """

    channels: tuple[int, ...] = (24, 48, 96)
    norm_groups: int = 8
    size: int = SIZE
    crop: int = 64
    photo_fraction: float = 0.5
    little_noise: float = 3.0
    photos: Path = Path("privgen/data/photos/train")


def build_scheduler() -> DDPMScheduler:
    """The noise schedule of arXiv 2006.11239, in whose steps noise is counted, with v-prediction."""
    return DDPMScheduler(beta_schedule="linear", prediction_type="v_prediction")


def build_denoiser(recipe: DenoiserRecipe) -> UNet2DModel:
    """Build a UNet without attention, with random weights."""
    levels = len(recipe.channels)
    return UNet2DModel(
        sample_size=recipe.crop,
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        norm_num_groups=recipe.norm_groups,
        add_attention=False,
    )


class DenoiserTask(Task):
    """Trains a denoiser to predict velocities on crops of scenes and photographs, mostly at little noise."""

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
        times = golden_times(indices, self.seed) ** self.recipe.little_noise
        t = (times * self.scheduler.config.num_train_timesteps).long()
        return {"pixels": pixels, "noise": noise, "t": t}

    def _crop(self, index: int) -> NDArray[np.float32]:
        rng = np.random.Generator(np.random.PCG64([self.seed, index]))
        side = self.recipe.crop
        if rng.random() < self.recipe.photo_fraction:
            return random_crop(self.photos, side, rng)
        pixels = draw_scene(scene_seed(self.seed, index), size=self.recipe.size).pixels
        top, left = rng.integers(pixels.shape[1] - side + 1, size=2)
        return np.ascontiguousarray(pixels[:, top : top + side, left : left + side])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        x_0, noise, t = 2 * batch["pixels"] - 1, batch["noise"], batch["t"]
        x_t = self.scheduler.add_noise(x_0, noise, t).contiguous(memory_format=torch.channels_last)
        velocity = self.scheduler.get_velocity(x_0, noise, t)
        error = (self.unet(x_t, t).sample - velocity).square().mean(dim=(1, 2, 3))
        # The estimate of x_0 is off by sqrt(1 - abar) times as much, pixels in [0, 1] by half of that.
        alpha_bar = self.scheduler.alphas_cumprod.to(t.device)[t]
        off = (1 - alpha_bar) * error / 4
        near = (t >= 50) & (t < 150)
        mean = (off * near).sum() / near.sum().clamp(min=1)
        return {"loss": error.mean(), "psnr_db_100": -10 * torch.log10(mean.clamp(min=1e-9))}

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Draw pictures, then the same with more and more noise, each row above the denoiser's estimate."""
        size = self.recipe.size
        scenes = [draw_scene(PREVIEW_SEED + i, size=size).pixels for i in range(4)]
        rng = np.random.Generator(np.random.PCG64(0))
        crops = [random_crop(self.photos, size, rng) for _ in range(4)] if self.photos else []
        x_0 = 2 * torch.from_numpy(np.stack(scenes + crops)).to(self.unet.device) - 1
        noise = torch.stack([torch.randn(x_0.shape[1:], generator=sample_generator(0, i)) for i in range(len(x_0))])
        rows = [x_0]
        for step in PREVIEW_STEPS:
            t = torch.full((len(x_0),), step - 1, device=x_0.device)
            x_t = self.scheduler.add_noise(x_0, noise.to(x_0), t)
            alpha_bar = float(self.scheduler.alphas_cumprod[step - 1])
            level = NoiseLevel(alpha_bar**0.5, (1 - alpha_bar) ** 0.5)
            rows += [x_t, predict_original(self.unet(x_t, t).sample, x_t, level, "v_prediction")]
        sheet = torch.cat([torch.cat(list(row), dim=-1) for row in rows], dim=-2)
        return picture((sheet / 2 + 0.5).cpu().numpy())

    def export(self, folder: Path) -> None:
        """Save the denoiser as the folder of a Diffusers `DDPMPipeline`."""
        self.unet.to(memory_format=torch.contiguous_format)
        DDPMPipeline(unet=self.unet, scheduler=self.scheduler).save_pretrained(folder)
