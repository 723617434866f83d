"""White noise: the control that every protection must beat at the same PSNR."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from privgen.protection.method import Method
from privgen.protection.surrogate import Surrogate


@dataclass(frozen=True, repr=False)
class Noise(Method):
    """Adds white Gaussian noise at the image's own size."""

    name: ClassVar[str] = "noise"
    uses_model: ClassVar[bool] = False

    def change(self, pixels: Tensor, surrogate: Surrogate, rms: float, generator: torch.Generator) -> Tensor:
        return torch.randn(pixels.shape, generator=generator)
