"""One pattern for all images: the control that tells what a protection owes to the image at hand."""

from dataclasses import KW_ONLY, dataclass
from functools import lru_cache
from importlib.resources import as_file, files
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from privgen.data.photos import load_photos, random_crop
from privgen.data.scenes import PREVIEW_SEED, draw_scene
from privgen.diffusion.latents import encode
from privgen.protection.method import Method
from privgen.protection.objectives import DenoisingTask
from privgen.protection.surrogate import Surrogate


@dataclass(frozen=True, repr=False)
class Universal(Method):
    """Adds the same pattern to every image: the one that raises the loss of fine-tuning most over other images.

    The pattern is fitted once to packaged photographs and scenes (universal perturbations, arXiv 1610.08401), and
    repeated over images that are not square.

    Args:
        steps: gradient steps of the fit, each on a new batch.
        batch_size: images of a step.
        seed: of the fit.
    """

    name: ClassVar[str] = "universal"

    steps: int = 100
    _: KW_ONLY
    batch_size: int = 4
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        if min(self.steps, self.batch_size) < 1:
            raise ValueError(f"{self.name}: expected steps and batch_size >= 1")

    def prepare(self, surrogate: Surrogate) -> None:
        _pattern(self, surrogate)

    def change(self, pixels: Tensor, surrogate: Surrogate, rms: float, generator: torch.Generator) -> Tensor:
        pattern, side = _pattern(self, surrogate), surrogate.canvas.size
        height, width = (max(side, round(n * side / min(pixels.shape[-2:]))) for n in pixels.shape[-2:])
        tiled = pattern.repeat(1, 1, -(-height // side), -(-width // side))
        return tiled[..., :height, :width]


@lru_cache(maxsize=4)
def _pattern(method: Universal, surrogate: Surrogate) -> Tensor:
    """The pattern (1, 3, S, S), with an RMS of 1."""
    task, side = DenoisingTask.of(surrogate.pipeline), surrogate.canvas.size
    generator = torch.Generator().manual_seed(method.seed)
    rng = np.random.default_rng(method.seed)
    rms = 10 ** (-34 / 20)
    pattern = (rms * torch.randn(1, 3, side, side, generator=generator)).to(surrogate.device)
    for step in range(method.steps):
        images = _images(method.batch_size, side, step, rng).to(pattern)
        with torch.enable_grad():
            pattern = pattern.detach().requires_grad_()
            latents = encode(task.vae, (images + pattern).clamp(0, 1))
            (gradient,) = torch.autograd.grad(task.loss(latents, task.draw(latents, generator)).sum(), pattern)
        pattern = pattern.detach() + 0.1 * rms * gradient.sign()
        pattern = pattern * (rms / pattern.square().mean().sqrt())
    return pattern / rms


def _images(count: int, side: int, step: int, rng: np.random.Generator) -> Tensor:
    """Half photographs, half scenes."""
    with as_file(files("privgen.data") / "photos" / "train") as folder:
        photos = load_photos(folder)
    drawn = [
        random_crop(photos, side, rng) if i % 2 else draw_scene(PREVIEW_SEED + step * count + i, size=side).pixels
        for i in range(count)
    ]
    return torch.from_numpy(np.stack(drawn))
