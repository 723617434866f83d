"""Projected gradient descent in a ball around an image, measured as PSNR measures."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from privgen.errors import PrivgenError


Loss: TypeAlias = Callable[[Tensor], Tensor]
"""A function from images (B, 3, H, W) in [0, 1] to one number, or one number an image."""


def descend_in_ball(
    pixels: Tensor,
    loss: Loss,
    *,
    rms: float,
    steps: int,
    generator: torch.Generator,
    step_size: float | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Lower a loss near images, and return the change that does it.

    Each step follows the sign of the gradient, and then the change is scaled back into the ball, so that all methods
    can be compared at one PSNR. (Madry et al., arXiv 1706.06083, do the same in the maximum norm.)

    Args:
        pixels: (B, 3, H, W) in [0, 1].
        loss: what to lower; called once a step, with a new draw of its randomness if it has any.
        rms: largest root mean square of the change of an image; 10^(-PSNR / 20).
        steps: number of gradient steps, at least 1.
        generator: draws the first change, on the CPU, where none is given.
        step_size: change of every pixel value in one step; 2.5 rms / steps by default, at least rms / 20.
        start: the first change, the same shape; by default noise of half the RMS.

    Returns:
        (B, 3, H, W), a change with which the pixels stay in [0, 1]. Its RMS is at most `rms`.

    Raises:
        PrivgenError: a gradient is not finite.
    """
    step = max(2.5 / steps, 0.05) * rms if step_size is None else step_size
    if start is None:
        start = rms / 2 * torch.randn(pixels.shape, generator=generator).to(pixels)
    change = into_ball(start, pixels, rms)
    for _ in range(steps):
        with torch.enable_grad():
            change = change.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(pixels + change).sum(), change)
        change = into_ball(change.detach() - step * direction_of(gradient), pixels, rms)
    return change


def direction_of(gradient: Tensor) -> Tensor:
    """The sign of a gradient.

    Raises:
        PrivgenError: it is not finite, as happens in float16.
    """
    if not gradient.isfinite().all():
        raise PrivgenError("The gradient of the model is not finite in this precision; use float32 or bfloat16.")
    return gradient.sign()


def into_ball(change: Tensor, pixels: Tensor, rms: float) -> Tensor:
    """Scale changes (B, 3, H, W) down to an RMS of at most `rms` each, and clip the changed pixels to [0, 1]."""
    size = change.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    scaled = change * (rms / size.clamp(min=1e-12)).clamp(max=1)
    return (pixels + scaled).clamp(0, 1) - pixels
