"""Projected gradient descent in a box around an image: the core of every attack that follows a network's gradient."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias, final

import torch
from torch import Tensor

from privgen.attacks.model_attack import ModelAttack


Loss: TypeAlias = Callable[[Tensor], Tensor]
"""An image (1, 3, H, W) in [0, 1] to a number, as a tensor of any shape with one element."""

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
    """Lower a loss near an image: Madry et al., arXiv 1706.06083, with signs of gradients and the maximum norm.

    Args:
        image: (1, 3, H, W) in [0, 1].
        loss: what to lower.
        epsilon: largest change of a value.
        steps: evaluations of the gradient.
        step_size: change of every value in a step.
        generator: of the first point, drawn uniformly from the box of what is allowed; on the CPU.

    Returns:
        (1, 3, H, W) in [0, 1], no value farther than `epsilon` from the image's.
    """
    low, high = (image - epsilon).clamp(min=0), (image + epsilon).clamp(max=1)
    x = low + (high - low) * torch.rand(image.shape, generator=generator).to(image)
    for _ in range(steps):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(x).sum(), x)
        x = torch.clamp(x.detach() - step_size * gradient.sign(), low, high)
    return x


@dataclass(frozen=True, kw_only=True, repr=False)
class GradientAttack(ModelAttack):
    """An attack by projected gradient descent, image by image, so that a batch equals its images one by one.

    Subclasses write `_objective` and `prepare`. Gradients do not flow through the attack itself.

    Args:
        strength: epsilon, the largest change of a value, in 1/255.
        model: whose network the attacker has.
        steps: evaluations of the gradient.
        step_size: change of a value in a step, in 1/255; by default 2.5 strength / steps.
    """

    kind = "A"
    unit = "1/255"
    sweep = (2, 4, 8)
    bounds = (0, 255)
    whole = False

    strength: float = 4
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
        """What to lower for one image (1, 3, H, W); called once, before the image is changed."""

    @final
    def _attack(self, images: Tensor, generators: list[torch.Generator]) -> Tensor:
        self.prepare()
        step_size = 2.5 * self.strength / self.steps if self.step_size is None else self.step_size
        settings: dict[str, Any] = {
            "epsilon": self.strength / 255,
            "steps": self.steps,
            "step_size": step_size / 255,
        }
        pairs = zip(images.detach().split(1), generators, strict=True)
        return torch.cat([descend(x, self._objective(x), generator=source, **settings) for x, source in pairs])
