"""What every protection is: a frozen value that turns an image into a faint change of it."""

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import Any, ClassVar

import torch
from torch import Tensor

from privgen.protection.surrogate import Surrogate


PSNR = 36.0
"""Quality of protected images against the originals, in dB, where you ask for no other."""


@dataclass(frozen=True, repr=False)
class Method(ABC):
    """How the change of an image is computed. Its size is set afterwards, the same for all methods.

    Subclasses are frozen dataclasses of settings, with a name, and write `change`.
    """

    name: ClassVar[str]
    """The name in the registry, on the command line and in reports."""
    uses_model: ClassVar[bool] = True
    """Whether `change` uses the surrogate."""

    @abstractmethod
    def change(self, pixels: Tensor, surrogate: Surrogate, rms: float, generator: torch.Generator) -> Tensor:
        """Compute the change of one image.

        Args:
            pixels: (1, 3, H, W) in [0, 1], at the image's own size, on the CPU.
            surrogate: the models to compute it against.
            rms: root mean square that the change will have, 10^(-PSNR / 20). The change that is returned need not
                have it; it is resized to the image and then scaled to the PSNR exactly.
            generator: of all randomness, on the CPU.

        Returns:
            (1, 3, h, w), on any device, at any size of about the same aspect ratio.

        Raises:
            PrivgenError: the surrogate lacks something.
        """

    def prepare(self, surrogate: Surrogate) -> None:  # noqa: B027 - most methods need nothing
        """Load what the method needs, to find out what is missing before work begins.

        Raises:
            PrivgenError: something is missing.
        """

    def made_by(self) -> str:
        """All that the change depends on beside the image, the surrogate and the PSNR, as a text.

        Methods with a network of their own name its weights here, so that a batch or a study notices others.

        Raises:
            PrivgenError: the network cannot be read.
        """
        return repr(self)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self.settings().items())
        return f"{type(self).__name__}({shown})"

    def settings(self) -> dict[str, Any]:
        """The settings that differ from their defaults."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {name: now for name, (now, default) in values.items() if now != default}
