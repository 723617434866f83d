"""What amplification and a learned variance cost: time of a sampling step with and without, in one run."""

from collections.abc import Callable
from time import perf_counter

import torch
from torch import Tensor

from privgen.diffusion.amplification import Amplification, AmplifiedScheduler
from privgen.evaluation.hallucination_methods import Method, build_scheduler
from privgen.evaluation.hallucination_tasks import PictureTask
from privgen.evaluation.spread import Measured, median


BATCH = 16
"""Pictures of a step."""
AMPLIFIED = Amplification(1.5, gate="trajectory", eta=1.1)
"""The dearest amplification there is, at every step."""


def step_ratios(task: PictureTask, *, steps: int, seed: int = 0) -> dict[str, Measured]:
    """Compare times of steps, network call included, one of each kind in turn.

    The networks are untrained, which takes the same time.

    Args:
        task: whose networks and schedule.
        steps: of each kind; a few more come first, which do not count.
        seed: of weights and noise.

    Returns:
        Medians over pairs of steps, right after each other, in changing order: "amplify_step_ratio" (ancestral
        sampling, amplified over plain), "variance_step_ratio" (with a learned variance over without).
    """
    x = torch.randn(BATCH, *task.held_out(1, seed).shape[1:], generator=torch.Generator().manual_seed(seed))
    plain = _stepper(task, Method("ddpm"), steps, seed)
    amplified = _stepper(task, Method("ddpm", amplification=AMPLIFIED), steps, seed)
    learned = _stepper(task, Method("ddpm", "precision"), steps, seed)
    pairs = {"amplify_step_ratio": amplified, "variance_step_ratio": learned}
    return {name: _ratio(plain, other, x, steps) for name, other in pairs.items()}


def _stepper(task: PictureTask, method: Method, steps: int, seed: int) -> Callable[[Tensor, int], Tensor]:
    denoise = task.denoiser(task.build(method.loss, seed).eval())
    scheduler = build_scheduler(task.scheduler(), method)
    used = scheduler if method.amplification is None else AmplifiedScheduler(scheduler, method.amplification)
    used.set_timesteps(steps)
    generator = torch.Generator().manual_seed(seed)

    def step(x: Tensor, number: int) -> Tensor:
        t = used.timesteps[number % steps]
        made: Tensor = used.step(denoise(x, t), t, x, return_dict=False, generator=generator)[0]
        return made

    return step


@torch.inference_mode()
def _ratio(
    plain: Callable[[Tensor, int], Tensor], other: Callable[[Tensor, int], Tensor], x: Tensor, steps: int
) -> Measured:
    ratios, warm_up = [], 3
    for number in range(-warm_up, steps):
        order = (plain, other) if number % 2 else (other, plain)
        seconds = {step: _timed(step, x, number) for step in order}
        if number >= 0:
            ratios.append(seconds[other] / seconds[plain])
    return median(ratios)


def _timed(step: Callable[[Tensor, int], Tensor], x: Tensor, number: int) -> float:
    started = perf_counter()
    step(x, number)
    return perf_counter() - started
