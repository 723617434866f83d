"""The code of objects: periodic waves in a model's latents, and the filters that read them."""

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, pad


POWER = 0.8
"""A cell of a field is divided by the local RMS of the field to this power."""
_AROUND = 2  # cells on each side that the local RMS is of


class ObjectCode(ModelMixin, ConfigMixin):
    """Waves in the latents that carry the marks of objects, and what a reader sees of them.

    A cell is one place of the latents. Each wave repeats every few cells. A reader takes away from the latents of an
    image what the model's denoiser takes for its content, whitens the rest, and divides it by its local power. That is
    the field. All numbers here are measured in closed form; see `privgen.training.watermark.object_code_fit`.

    Args:
        waves: number of waves, each with a complex amplitude.
        channels: of the latents.
        size: side in pixels of the canvas that it was made for.
        period: cells after which all waves repeat.
        timestep: of 1000, at which the denoiser is asked for the content.
        reach: cells on each side that the whitening filter looks at.
        vectors: number of embeddings of a token that writes the waves; 0 if no token can.
        width: numbers of one embedding.
        tau: tokens act on timesteps t <= tau, of 1000.
    """

    @register_to_config
    def __init__(
        self,
        waves: int,
        channels: int,
        size: int,
        period: int = 8,
        timestep: int = 119,
        reach: int = 2,
        vectors: int = 0,
        width: int = 0,
        tau: int = 75,
    ) -> None:
        super().__init__()
        side = 2 * reach + 1
        self.cycles = nn.Parameter(torch.zeros(waves, 2), requires_grad=False)  # a period, across and down
        self.written = nn.Parameter(torch.zeros(waves, channels, 2), requires_grad=False)  # real and imaginary parts
        self.answers = nn.Parameter(torch.zeros(waves, channels, 2), requires_grad=False)
        self.whitening, self.answer, self.cost = (
            nn.Parameter(torch.zeros(channels, channels, side, side), requires_grad=False) for _ in range(3)
        )
        self.words = nn.Parameter(torch.zeros(vectors, width), requires_grad=False)
        self.content = nn.Parameter(torch.zeros(2 * waves, vectors, width), requires_grad=False)

    def patterns(self, amplitudes: Tensor, height: int, width: int) -> Tensor:
        """Return sums of waves, to be added to scaled latents.

        Args:
            amplitudes: (K, waves) complex.
            height: of the latents.
            width: of the latents.

        Returns:
            (K, channels, height, width) float32.
        """
        phases = self._phases(height, width)
        written = torch.view_as_complex(self.written)
        return torch.einsum("km,mc,yxm->kcyx", amplitudes.to(phases), written, phases).real

    def seen(self, change: Tensor) -> Tensor:
        """Return what the field shows of changes of latents, on average, before it is divided by its local power.

        Args:
            change: (K, channels, height, width).

        Returns:
            The same shape.
        """
        reach = (self.config.reach,) * 4
        return conv2d(pad(conv2d(pad(change, reach), self.answer), reach), self.whitening)

    def paid(self, change: Tensor) -> Tensor:
        """Return the gradient of half the squared change of pixels for changes of latents, on average.

        Args:
            change: (K, channels, height, width).

        Returns:
            The same shape.
        """
        return conv2d(pad(change, (self.config.reach,) * 4), self.cost)

    def field(self, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Whiten what is left of latents, and divide it by its local power.

        Args:
            rest: (channels, height, width), latents less what the denoiser takes for their content.

        Returns:
            The field, of the same shape; and (height, width), what it was divided by.
        """
        reach = self.config.reach
        field = conv2d(pad(rest[None], (reach,) * 4, mode="reflect"), self.whitening)
        power = field.square().mean(1, keepdim=True)
        around = min(_AROUND, min(rest.shape[1:]) - 1)
        local = avg_pool2d(pad(power, (around,) * 4, mode="reflect"), 2 * around + 1, 1)
        divisor = local.clamp(min=1e-12) ** (POWER / 2)
        return (field / divisor)[0], divisor[0, 0]

    def evidence(self, field: Tensor) -> Tensor:
        """Return what each cell of fields (..., channels, height, width) says of each wave; complex, waves last."""
        phases = self._phases(*field.shape[-2:])
        answers = torch.view_as_complex(self.answers)
        return torch.einsum("mc,...cyx,yxm->...yxm", answers.conj(), field.to(answers.dtype), phases.conj())

    def sums(self, field: Tensor, weight: Tensor) -> Tensor:
        """Return the `evidence` of fields, summed over cells with a weight (height, width): (..., waves) complex."""
        answers, phases = torch.view_as_complex(self.answers), self._phases(*field.shape[-2:])
        waves = (phases.conj() * weight[..., None]).flatten(0, 1)
        return torch.einsum("mc,...cm->...m", answers.conj(), field.flatten(-2).to(waves) @ waves)

    def _phases(self, height: int, width: int) -> Tensor:
        rows, columns = (torch.arange(side, device=self.cycles.device) for side in (height, width))
        turns = rows[:, None, None] * self.cycles[:, 1] + columns[:, None] * self.cycles[:, 0]
        angles = 2 * math.pi / self.config.period * turns
        return torch.polar(torch.ones_like(angles), angles)
