"""Detectors of hallucinations: what a network says of a sample that it has made.

Where there are data, the score of nearly clean data is small; a sample between modes is pulled away. So the finished
sample goes through the network once more, as if it had a little noise, and what is compared is how much of it the
network takes for noise. It costs one network call for each timestep asked.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor
from torch.nn.functional import avg_pool2d

from privgen.diffusion.noise_level import noise_level, prediction_type
from privgen.diffusion.parameterisation import predict_noise


@dataclass(frozen=True)
class Detector:
    """The noise that a network sees in finished samples.

    Attributes:
        timesteps: whose noise level the network is told.
        box: side of the square over which the squared noise is averaged, in pixels, of which the largest counts; 0
            takes the mean over the whole sample.
    """

    timesteps: tuple[int, ...] = (20,)
    box: int = 0

    def __post_init__(self) -> None:
        if not self.timesteps or min(self.timesteps) < 0 or self.box < 0:
            raise ValueError(f"expected timesteps and a box of at least 0, got {self.timesteps} and {self.box}")

    @property
    def calls(self) -> int:
        """Network calls that it takes."""
        return len(self.timesteps)

    def scores(self, denoise: Callable[[Tensor, Tensor], Tensor], scheduler: SchedulerMixin, x_0: Tensor) -> Tensor:
        """Of finished samples, high ones tell of hallucinations.

        Args:
            denoise: the network, from (B, ...) and a timestep to its output, with or without a learned variance.
            scheduler: whose noise schedule and `prediction_type` it was trained for.
            x_0: (B, C, ...); (B, C, H, W) if there is a box.

        Returns:
            (B,): mean over the timesteps of the mean or largest squared noise.
        """
        prediction, found = prediction_type(scheduler), []
        for timestep in self.timesteps:
            t = torch.tensor(timestep)
            level = noise_level(scheduler, t)
            x_t = level.alpha * x_0
            output = denoise(x_t, t)[:, : x_0.shape[1]]
            found.append(self._reduced(predict_noise(output, x_t, level, prediction).square()))
        return torch.stack(found).mean(0)

    def _reduced(self, squares: Tensor) -> Tensor:
        if not self.box:
            return squares.flatten(1).mean(1)
        means = avg_pool2d(squares.mean(1, keepdim=True), self.box, stride=max(self.box // 2, 1))
        return means.flatten(1).max(1).values
