"""Anti-DreamBooth's ASPL: a surrogate that is fine-tuned on the image while the image changes."""

import copy
from dataclasses import KW_ONLY, dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from privgen.diffusion.latents import encode
from privgen.protection.denoiser import AdvDM
from privgen.protection.descent import direction_of, into_ball
from privgen.protection.objectives import DenoisingTask
from privgen.protection.surrogate import Surrogate


@dataclass(frozen=True, repr=False)
class ASPL(AdvDM):
    """Alternating surrogate and perturbation learning (arXiv 2303.15433).

    In each round the surrogate is fine-tuned on the image as it is, which shows where an adversary's model will be;
    the image then takes steps against that model; and the surrogate learns from the changed image.

    Args:
        steps: gradient steps on the image in each round; the paper has 6.
        size: see `AdvDM`.
        prompt: what the image is said to show.
        rounds: how often to alternate; the paper has 50.
        training_steps: steps of the surrogate in each round, on the image as it is and on the changed one; the paper
            has 3.
        learning_rate: of the surrogate, AdamW; the paper has 5e-7 to 5e-6 for Stable Diffusion.
    """

    name: ClassVar[str] = "aspl"

    steps: int = 6
    _: KW_ONLY
    rounds: int = 50
    training_steps: int = 3
    learning_rate: float = 1e-5

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        if min(self.rounds, self.training_steps) < 1:
            raise ValueError(f"{self.name}: expected rounds and training_steps >= 1")

    def change_at(self, pixels: Tensor, surrogate: Surrogate, rms: float, generator: torch.Generator) -> Tensor:
        task = DenoisingTask.of(surrogate.pipeline, self.prompt)
        change = into_ball(rms / 2 * torch.randn(pixels.shape, generator=generator).to(pixels), pixels, rms)
        # The paper's step is about a tenth of its budget.
        step = 0.1 * rms
        for _ in range(self.rounds):
            against = replace(task, unet=copy.deepcopy(task.unet))
            self._train(against, pixels, generator)
            for _ in range(self.steps):
                with torch.enable_grad():
                    change = change.detach().requires_grad_()
                    latents = encode(task.vae, pixels + change)
                    (gradient,) = torch.autograd.grad(against.loss(latents, against.draw(latents, generator)), change)
                change = into_ball(change.detach() + step * direction_of(gradient), pixels, rms)
            task = replace(task, unet=copy.deepcopy(task.unet)) if task.unet is surrogate.pipeline.unet else task
            self._train(task, pixels + change, generator)
        return change

    def _train(self, task: DenoisingTask, pixels: Tensor, generator: torch.Generator) -> None:
        """Fine-tune the UNet of a task on one image."""
        with torch.no_grad():
            latents = encode(task.vae, pixels)
        task.unet.requires_grad_(True)
        optimizer = torch.optim.AdamW(task.unet.parameters(), lr=self.learning_rate)
        for _ in range(self.training_steps):
            with torch.enable_grad():
                task.loss(latents, task.draw(latents, generator)).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        task.unet.requires_grad_(False)
