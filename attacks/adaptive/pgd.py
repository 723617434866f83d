"""Projected gradient descent in a box around an image, for every attack that follows the gradient of a network."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import TypeAlias, final

import torch
from torch import Tensor

from privgen.attacks.model_attack import ModelAttack


Loss: TypeAlias = Callable[[Tensor], Tensor]
"""A function from an image (1, 3, H, W) in [0, 1] to a tensor with one element."""

STEPS = 200


def descend(
    image: Tensor,
    loss: Loss,
    *,
    epsilon: float,
    steps: int,
    step_size: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Lower a loss near an image, by signs of gradients in the maximum norm: Madry et al., arXiv 1706.06083.

    Args:
        image: (1, 3, H, W) in [0, 1].
        loss: what to lower.
        epsilon: largest change of a pixel value.
        steps: number of gradient steps.
        step_size: change of every pixel value in one step.
        generator: draws the first point, uniformly from the allowed box; on the CPU.

    Returns:
        (1, 3, H, W) in [0, 1]; no value is farther than `epsilon` from the image's.
    """
    low, high = (image - epsilon).clamp(min=0), (image + epsilon).clamp(max=1)
    x = low + (high - low) * torch.rand(image.shape, generator=generator).to(image)
    for _ in range(steps):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(x).sum(), x)
        x = torch.clamp(x.detach() - step_size * gradient.sign(), low, high)
    return x


@dataclass(frozen=True, repr=False)
class GradientAttack(ModelAttack):
    """An attack by projected gradient descent, one image at a time, so that a batch equals its images one by one.

    Subclasses write `_objective` and `prepare`. Gradients do not flow through the attack itself.

    Args:
        strength: epsilon, the largest change of a pixel value, 0 to 255, in 1/255.
        model: the model whose network the attacker has.
        steps: number of gradient steps, at least 1.
        step_size: change of a pixel value in one step, in 1/255; by default 2.5 strength / steps.
        device: device for a model given by name.
        dtype: precision of the weights of a model given by name.
    """

    kind = "A"
    unit = "1/255"
    sweep = (2, 4, 8)
    bounds = (0, 255)
    whole = False

    strength: float = 4
    _: KW_ONLY
    steps: int = STEPS
    step_size: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise ValueError(f"{self.name}: expected steps >= 1, got {self.steps!r}")
        if self.step_size is not None and not 0 < self.step_size <= 255:
            raise ValueError(f"{self.name}: expected step_size in (0, 255], got {self.step_size!r}")

    @abstractmethod
    def _objective(self, image: Tensor) -> Loss:
        """Return what to lower for one image (1, 3, H, W); it is called once, before the image changes."""

    @final
    def _attack(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        self.prepare()
        step_size = 2.5 * self.strength / self.steps if self.step_size is None else self.step_size
        moved = [
            descend(
                image,
                self._objective(image),
                epsilon=self.strength / 255,
                steps=self.steps,
                step_size=step_size / 255,
                generator=generator,
            )
            for image, generator in zip(images.detach().split(1), generators, strict=True)
        ]
        return torch.cat(moved)
