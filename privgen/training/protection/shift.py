"""Training of the network that shifts trajectories, see `privgen.protection.trajectory_shift`."""

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from privgen.data.photos import load_photos, random_crop, random_view
from privgen.data.scenes import PREVIEW_SEED, draw_scene
from privgen.data.sheets import picture
from privgen.errors import UsageError
from privgen.hub import load_pipeline
from privgen.io.residual import at_psnr
from privgen.models.family import Canvas
from privgen.models.initialise import seeded_weights
from privgen.models.shift_network import ShiftNetwork
from privgen.protection.trajectory_shift import (
    DELIVERIES,
    Delivery,
    Trajectory,
    ascend,
    excess_db,
    lagrangian,
)
from privgen.training.loop import Batch, Task, sample_generator
from privgen.training.scene_latents import scene_seed


@dataclass(frozen=True)
class ShiftRecipe:
    """A network that shifts trajectories, and its training.

    Attributes:
        model: folder of the frozen text-to-image model, which must learn the images badly.
        vae: folder of an autoencoder for a model that has none of its own; None is the model's own.
        photos: folder of photographs.
        photo_fraction: fraction of the images that are photographs; the others are scenes.
        width: channels of the network's hidden layers, a multiple of 8.
        blocks: residual blocks of the network.
        n: denoising steps.
        delivery: "residual" or "decoded", see `privgen.protection.trajectory_shift.Trajectory.change`.
        psnr: budget of the change, in dB, on average over images.
        draws: draws of time and noise for each image.
        dual_rate: rise of the budget's multiplier in each step, for each dB beyond the budget.
    """

    model: Path = Path("privgen/models/mini")
    vae: Path | None = None
    photos: Path = Path("privgen/data/photos/train")
    photo_fraction: float = 0.5
    width: int = 64
    blocks: int = 3
    n: int = 4
    delivery: str = "residual"
    psnr: float = 36.0
    draws: int = 2
    dual_rate: float = 0.003


class ShiftTask(Task):
    """Trains the network to raise the loss of a frozen model, within a budget that dual ascent enforces."""

    def __init__(self, recipe: ShiftRecipe, seed: int) -> None:
        super().__init__()
        if recipe.delivery not in DELIVERIES:
            raise UsageError(f"shift.delivery must be one of {', '.join(DELIVERIES)}, not {recipe.delivery!r}.")
        self.recipe, self.seed = recipe, seed
        pipe = load_pipeline(recipe.model, vae=recipe.vae, device="cpu", safety_checker=False)
        self.frozen = nn.ModuleList([pipe.vae, pipe.unet]).requires_grad_(False).eval()
        self.trajectory, self.canvas = Trajectory.of_pipeline(pipe, recipe.n), Canvas.of_pipeline(pipe)
        with seeded_weights(seed):
            self.network = ShiftNetwork(self.canvas.channels, recipe.width, recipe.blocks)
        self.multiplier: Tensor
        self.register_buffer("multiplier", torch.zeros(()), persistent=False)
        self.photos = load_photos(recipe.photos) if recipe.photo_fraction > 0 else ()

    def state(self) -> dict[str, Tensor]:
        return {"multiplier": self.multiplier}

    def batch(self, indices: list[int]) -> Batch:
        shape = torch.Size([self.canvas.channels, self.canvas.latents, self.canvas.latents])
        drawn = [self.trajectory.draw(shape, self.recipe.draws, sample_generator(self.seed, i)) for i in indices]
        return {
            "pixels": torch.stack([self._image(i) for i in indices]),
            "times": torch.stack([times for times, _ in drawn]),
            "noise": torch.stack([noise for _, noise in drawn]),
        }

    def _image(self, index: int) -> Tensor:
        rng = np.random.Generator(np.random.PCG64([self.seed, index]))
        if rng.random() < self.recipe.photo_fraction:
            cut = random_view if rng.random() < 0.5 else random_crop
            return torch.from_numpy(cut(self.photos, self.canvas.size, rng))
        return torch.from_numpy(draw_scene(scene_seed(self.seed, index), size=self.canvas.size).pixels)

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        pixels = batch["pixels"]
        trajectory = self.trajectory.to(pixels.device)
        changed = (pixels + self._change(pixels)).clamp(0, 1)
        loss = trajectory.loss(changed, batch["times"], batch["noise"])
        with torch.no_grad():
            plain = trajectory.loss(pixels, batch["times"], batch["noise"])
        excess = excess_db(changed - pixels, self.recipe.psnr)
        # A copy, because the multiplier changes before the backward pass.
        value = lagrangian(loss, excess, self.multiplier.clone())
        if torch.is_grad_enabled():
            self.multiplier.copy_(ascend(self.multiplier, _of_all_processes(excess), self.recipe.dual_rate))
        return {
            "loss": value,
            "gain": (loss - plain).mean(),
            "psnr_db": (self.recipe.psnr - excess).mean(),
            "multiplier": self.multiplier.clone(),
        }

    def _change(self, pixels: Tensor) -> Tensor:
        trajectory = self.trajectory.to(pixels.device)
        return trajectory.change(pixels, trajectory.begin(pixels), self.network, cast(Delivery, self.recipe.delivery))

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Draw images, the same images protected at the budget's PSNR, and ten times the difference."""
        scenes = [draw_scene(PREVIEW_SEED + i, size=self.canvas.size).pixels for i in range(4)]
        rng = np.random.Generator(np.random.PCG64(0))
        photos = [random_view(self.photos, self.canvas.size, rng) for _ in range(4)] if self.photos else []
        pixels = torch.from_numpy(np.stack(scenes + photos)).to(self.network.device)
        psnr = torch.full((len(pixels),), self.recipe.psnr, device=pixels.device)
        protected = at_psnr(pixels, self._change(pixels), psnr)
        rows = [pixels, protected, (0.5 + 10 * (protected - pixels)).clamp(0, 1)]
        return picture(torch.cat([torch.cat(list(row), dim=2) for row in rows], dim=1).cpu().numpy())

    def export(self, folder: Path) -> None:
        """Save the network in `folder / "shift"`."""
        self.network.save_pretrained(folder / "shift")


def _of_all_processes(excess: Tensor) -> Tensor:
    """The excess of the images of all processes, so that all of them keep the same multiplier."""
    excess = excess.detach()
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return excess
    parts = [torch.empty_like(excess) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, excess)
    return torch.cat(parts)
