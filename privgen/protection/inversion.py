"""Deterministic inversion: from an image's latents up to the noise that a few DDIM steps turn into these latents.

A DDIM step without noise is a function f of the noisier latents z_t. To invert it, one solves f(z_t) = z for z_t.
Plain DDIM inversion (arXiv 2105.05233, appendix F) evaluates the model at z in place of z_t. Large steps make that a
large error. Fixed-point iteration (arXiv 2309.04907) evaluates the model again at the estimate so found, and so on. A
few evaluations come close to z_t.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from privgen.diffusion.parameterisation import NoiseLevel, Prediction, add_noise, predict_noise
from privgen.diffusion.unrolled_ddim import Schedule, UnrolledDDIM


@dataclass(frozen=True, eq=False)
class Inversion:
    """Noise that stands for an image, and what the way back misses.

    Attributes:
        noise: z_T, (B, C, h, w).
        residuals: for each denoising step, in their order, what it misses of the latents that inversion came from;
            (B, C, h, w). They are zero for a perfect inversion.
    """

    noise: Tensor
    residuals: tuple[Tensor, ...]


def inversion_timesteps(schedule: Schedule, steps: int) -> list[int]:
    """Return the training timesteps of denoising in a few equal steps from the noisiest one, in descending order.

    They are those of Diffusers' schedulers with `timestep_spacing="trailing"`.

    Args:
        schedule: the model's.
        steps: how many, at least 1 and at most the number of training timesteps.

    Raises:
        ValueError: there cannot be so many steps.
    """
    top = len(schedule.alphas)
    if not 1 <= steps <= top:
        raise ValueError(f"expected 1 to {top} denoising steps, got {steps}")
    return [round(top * (steps - i) / steps) - 1 for i in range(steps)]


def invert(
    z_0: Tensor, ddim: UnrolledDDIM, timesteps: Sequence[int], embeds: Tensor, *, iterations: int = 3
) -> Inversion:
    """Invert denoising, step by step from t = 0 up to T.

    Args:
        z_0: (B, C, h, w) float32, scaled latents of images.
        ddim: the model, without guidance: a scale of 1.
        timesteps: of denoising, in descending order, see `inversion_timesteps`.
        embeds: (1, length, dim), embeddings of the prompt; those of "" for images of unknown content.
        iterations: fixed-point iterations in each step after the first estimate; 0 is plain DDIM inversion. Each
            evaluates the model once.

    Raises:
        ValueError: `iterations` is below 0.
    """
    if iterations < 0:
        raise ValueError(f"expected 0 or more iterations a step, got {iterations}")
    prompts, prediction = _for_each(embeds, z_0), ddim.schedule.prediction_type
    z, residuals, upwards = z_0, [], timesteps[::-1]
    for then, now in zip([None, *upwards[:-1]], upwards, strict=True):
        alpha_bar, alpha_bar_t = ddim.schedule.alpha(then), ddim.schedule.alpha(now)
        estimate = z
        for _ in range(iterations + 1):
            output = ddim.predict(estimate, now, prompts, prompts)
            estimate = inverse_step(z, estimate, output, alpha_bar, alpha_bar_t, prediction)
        residuals.append(z - _step(estimate, ddim, now, then, prompts))
        z = estimate
    return Inversion(z, tuple(reversed(residuals)))


def denoise(
    z_t: Tensor,
    ddim: UnrolledDDIM,
    timesteps: Sequence[int],
    embeds: Tensor,
    residuals: Sequence[Tensor] | None = None,
) -> Tensor:
    """Denoise, and add after each step what it misses of an image.

    Args:
        z_t: (B, C, h, w) float32, latents at `timesteps[0]`.
        ddim: the model, without guidance.
        timesteps: in descending order.
        embeds: (1, length, dim), embeddings of the prompt.
        residuals: of an `Inversion`, one for each step. With them the way back from that inversion's noise is exact up
            to rounding, with any number of steps. None adds nothing.

    Returns:
        z_0, (B, C, h, w).
    """
    prompts = _for_each(embeds, z_t)
    for i, (now, then) in enumerate(zip(timesteps, [*timesteps[1:], None], strict=True)):
        z_t = _step(z_t, ddim, now, then, prompts)
        if residuals is not None:
            z_t = z_t + residuals[i]
    return z_t


def inverse_step(
    z: Tensor, estimate: Tensor, output: Tensor, alpha_bar: float, alpha_bar_t: float, prediction: Prediction
) -> Tensor:
    """Improve an estimate of the latents z_t that one DDIM step turns into given latents.

    The step is z = alpha x_0 + sigma eps, with x_0 = (z_t - sigma_t eps) / alpha_t (arXiv 2010.02502, equation 12).
    Given the noise eps that the model sees in the estimate, this function solves it for z_t.

    Args:
        z: (B, C, h, w), latents after the step.
        estimate: of z_t, the same shape.
        output: of the model for the estimate, the same shape.
        alpha_bar: of z, in (0, 1].
        alpha_bar_t: of z_t, in [0, 1).
        prediction: what the model predicts.

    Returns:
        The better estimate, the same shape.
    """
    level, level_t = NoiseLevel.from_alpha_bar(alpha_bar), NoiseLevel.from_alpha_bar(alpha_bar_t)
    noise = predict_noise(output, estimate, level_t, prediction)
    original = (z - level.sigma * noise) / level.alpha
    return add_noise(original, noise, level_t)


def _step(z: Tensor, ddim: UnrolledDDIM, now: int, then: int | None, prompts: Tensor) -> Tensor:
    return ddim.run(z, [now], prompts, prompts, end=then)[-1]


def _for_each(embeds: Tensor, z: Tensor) -> Tensor:
    return embeds.to(z.device).expand(len(z), *embeds.shape[1:])
