"""How training images get their marks, and where they go before these are read."""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from privgen.data.scenes import sample_spec
from privgen.data.sheets import picture
from privgen.diffusion.sampling import generate
from privgen.models.mappers import TokenMapper
from privgen.watermark.token import token_embeddings
from privgen.watermark.write.with_token import token_residuals


_FIRST_SCENE = 4 * 10**12  # scenes that no training run draws


def rows_of_marks(clean: Tensor, marked: Tensor) -> Image.Image:
    """Images, the same with marks, and the difference ten times enlarged; both (B, 3, H, W) in [0, 1]."""
    rows = [clean, marked, 0.5 + 10 * (marked - clean)]
    pixels = torch.cat([torch.cat(list(row.clamp(0, 1)), dim=2) for row in rows], dim=1)
    return picture(pixels.cpu().numpy())


def draw_pose(rng: np.random.Generator) -> Tensor:
    """A cut-out, a rotation or both, and a guess of it that is not quite right: (2, 4), each as in `Poses`.

    Guesses are as far off as those of a search over a grid of 4 pixels in 128, and of 5 degrees.

    Args:
        rng: draws.
    """
    true = _pose(rng)
    error = rng.uniform(-1, 1, 4) * [0.02, 0.016, 0.016, 2.5]
    # Where the side is wrong, the middle shall stay.
    error[1:3] -= error[0] / 2
    return torch.tensor(np.stack([true, true + error]), dtype=torch.float32)


def _pose(rng: np.random.Generator) -> NDArray[np.float64]:
    kind, degrees = rng.random(), rng.uniform(-45, 45)
    if kind < 0.25:
        return np.array([1.0, 0.0, 0.0, degrees])
    side = rng.uniform(0.45, 1) ** 0.5
    return np.array([side, *rng.uniform(0, 1 - side, 2), degrees if kind < 0.5 else 0.0])


class TokenWriter(nn.Module):
    """A frozen text-to-image model whose tokens write marks.

    Args:
        folder: a Stable Diffusion folder with `privgen/token_mapper`.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.pipe = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
        self.parts = nn.ModuleList([self.pipe.unet, self.pipe.vae, self.pipe.text_encoder])
        self.mapper = TokenMapper.from_pretrained(folder / "privgen" / "token_mapper")
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, images: Tensor, bits: Tensor, generators: list[torch.Generator]) -> Tensor:
        """What the tokens of messages change in images; see `token_residuals`.

        Args:
            images: (B, 3, S, S) in [0, 1].
            bits: (B, n_bits) of 0 and 1.
            generators: one for each image.
        """
        embeddings, negative = token_embeddings(self.mapper, bits)
        tau = float(self.mapper.config.tau)
        return token_residuals(
            images, embeddings, negative_token=negative, pipe=self.pipe, tau=tau, generator=generators
        )

    @torch.no_grad()
    def unmarked(self, count: int, seed: int) -> Tensor:
        """Generated images without a mark, (count, 3, S, S) in [0, 1], on the CPU."""
        first = _FIRST_SCENE + 100_000_000 * seed
        specs = [sample_spec(first + i, count=1 + i % 2, textured=False) for i in range(count)]
        prompts, seeds = [spec.caption for spec in specs], [first + i for i in range(count)]
        return generate(self.pipe, prompts, seeds, progress="generated images")
