"""What all methods share that follow the gradient of a surrogate model, one image at a time."""

from abc import abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, final

import torch
from torch import Tensor

from privgen.protection.descent import Loss, descend_in_ball
from privgen.protection.method import Method
from privgen.protection.surrogate import Surrogate, to_working_size


@dataclass(frozen=True, repr=False)
class GradientMethod(Method):
    """A protection by projected gradient descent on each image.

    Subclasses write `objective`, or `change_at` if they do more than descend.

    Args:
        steps: number of gradient steps, at least 1.
        size: short side in pixels at which to work, a multiple of 8; None is the model's own size.
    """

    uses_model: ClassVar[bool] = True

    steps: int = 100
    _: KW_ONLY
    size: int | None = None

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.steps < 1:
            raise ValueError(f"{self.name}: expected steps >= 1, got {self.steps}")
        if self.size is not None and (self.size < 16 or self.size % 8):
            raise ValueError(f"{self.name}: expected a size of at least 16 that is a multiple of 8, got {self.size}")

    @final
    def change(self, pixels: Tensor, surrogate: Surrogate, rms: float, generator: torch.Generator) -> Tensor:
        side = self.size or self.side_for(pixels, surrogate)
        return self.change_at(to_working_size(pixels.to(surrogate.device), side), surrogate, rms, generator)

    def side_for(self, pixels: Tensor, surrogate: Surrogate) -> int:
        """The short side at which to work where no size is set: that of the model's canvas."""
        return surrogate.canvas.size

    def change_at(self, pixels: Tensor, surrogate: Surrogate, rms: float, generator: torch.Generator) -> Tensor:
        """Compute the change at the size at which the method works.

        Args:
            pixels: (1, 3, h, w) in [0, 1], on the surrogate's device.
            surrogate: see `Method.change`.
            rms: see `Method.change`.
            generator: see `Method.change`.

        Returns:
            (1, 3, h, w), with an RMS of at most `rms`.
        """
        loss = self.objective(pixels, surrogate, generator)
        return descend_in_ball(pixels, loss, rms=rms, steps=self.steps, generator=generator)

    @abstractmethod
    def objective(self, pixels: Tensor, surrogate: Surrogate, generator: torch.Generator) -> Loss:
        """Return what to lower for one image (1, 3, h, w). It is called once, before the image changes."""
