"""Find hallucinations by the noise that a network sees in a finished sample.

Where there are data, a nearly clean sample has a small score; a sample between modes is pulled away. So the finished
sample goes through the network once more, as if it had a little noise, and the noise that the network predicts is its
score for hallucination. This costs one network call for each timestep.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from privgen.diffusion.noise_level import noise_level, prediction_type
from privgen.diffusion.parameterisation import predict_noise


@dataclass(frozen=True)
class HallucinationDetector:
    """Scores finished samples by the squared noise that a network predicts in them.

    Attributes:
        timesteps: whose noise level the network is told; the scores are averaged over them.

    Raises:
        ValueError: no timesteps, or one below 0.
    """

    timesteps: tuple[int, ...] = (20,)

    def __post_init__(self) -> None:
        if not self.timesteps or min(self.timesteps) < 0:
            raise ValueError(f"expected at least one timestep, and none below 0, got {self.timesteps}")

    @property
    def calls(self) -> int:
        """How many network calls a sample costs."""
        return len(self.timesteps)

    def scores(self, denoise: Callable[[Tensor, Tensor], Tensor], scheduler: SchedulerMixin, x_0: Tensor) -> Tensor:
        """Score finished samples; high scores indicate hallucinations.

        Args:
            denoise: the network, from (B, ...) and a timestep to its output, with or without a learned variance.
            scheduler: with the noise schedule and `prediction_type` that the network was trained for.
            x_0: (B, C, ...).

        Returns:
            (B,), the mean squared noise over the timesteps.
        """
        prediction, found = prediction_type(scheduler), []
        for timestep in self.timesteps:
            t = torch.tensor(timestep)
            level = noise_level(scheduler, t)
            x_t = level.alpha * x_0
            output = denoise(x_t, t)[:, : x_0.shape[1]]
            found.append(predict_noise(output, x_t, level, prediction).square().flatten(1).mean(1))
        return torch.stack(found).mean(0)
