"""Read from a Diffusers scheduler what the network predicts, and how much noise a sample has."""

import inspect
from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from torch import Tensor

from privgen.diffusion.parameterisation import PREDICTIONS, NoiseLevel, Prediction
from privgen.errors import UsageError


def prediction_type(scheduler: SchedulerMixin) -> Prediction:
    """Return what the network of this scheduler predicts.

    Raises:
        UsageError: x_0 and eps cannot be computed from the prediction, as with EDM's preconditioned output.
    """
    config = scheduler.config
    is_flow = hasattr(scheduler, "scale_noise") and not hasattr(scheduler, "alphas_cumprod")
    found = config.get("prediction_type", "flow_prediction" if is_flow else None)
    if found not in PREDICTIONS or "sigma_data" in config:
        raise UsageError(
            f"{type(scheduler).__name__} takes predictions of another kind; use one of Diffusers' schedulers for "
            f"{', '.join(PREDICTIONS)}, such as DDIMScheduler."
        )
    return cast(Prediction, found)


def noise_level(scheduler: SchedulerMixin, timestep: Any) -> NoiseLevel:
    """Return how much noise the sample of a timestep has, by the scheduler's own numbers.

    Args:
        scheduler: after `set_timesteps`, about to step from `timestep`.
        timestep: the timestep that a pipeline passes to `step`.

    Raises:
        UsageError: the scheduler has neither sigmas nor cumulative alphas.
    """
    if hasattr(scheduler, "sigmas"):
        return _level_of_sigma(scheduler, timestep)
    if not hasattr(scheduler, "alphas_cumprod"):
        raise UsageError(f"{type(scheduler).__name__} does not tell its noise level; use DDIMScheduler, for example.")
    return NoiseLevel.from_alpha_bar(float(scheduler.alphas_cumprod[int(timestep)]))


def takes_variance(scheduler: SchedulerMixin) -> bool:
    """Return whether the scheduler's step expects a learned variance after the prediction."""
    # A scheduler of another class may have the entry in its configuration without using it.
    reads = "variance_type" in inspect.signature(type(scheduler).__init__).parameters
    return reads and scheduler.config.get("variance_type") in ("learned", "learned_range")


def relative_timestep(scheduler: SchedulerMixin, timestep: Any) -> float:
    """Return the timestep on the scale of 1000 training timesteps."""
    value = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
    return value * 1000 / scheduler.config.get("num_train_timesteps", 1000)


def _level_of_sigma(scheduler: Any, timestep: Any) -> NoiseLevel:
    if scheduler.step_index is None:
        scheduler._init_step_index(timestep)  # the scheduler's step does this first
    if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        alpha, sigma = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index])
        return NoiseLevel(float(alpha), float(sigma))
    if hasattr(scheduler, "scale_noise"):
        sigma = float(scheduler.sigmas[scheduler.step_index])
        return NoiseLevel(1 - sigma, sigma)
    # The sample is x_0 + sigma eps, and these schedulers divide it by sqrt(sigma^2 + 1) for the network. Schedulers of
    # second order use another sigma at every other step; scaling a 1 tells the sigma that they really use.
    scale = float(scheduler.scale_model_input(torch.ones(1, dtype=torch.float64), timestep))
    return NoiseLevel(scale, max(1 - scale**2, 0.0) ** 0.5, scale)
