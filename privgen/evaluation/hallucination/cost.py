"""Measure how much time amplification and a learned variance add to a sampling step."""

from collections.abc import Callable
from time import perf_counter

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from privgen.evaluation.intervals import Measured, median
from privgen.hallucination.amplification import Amplification
from privgen.hallucination.scheduler import AmplifiedScheduler
from privgen.hub import resolve_model
from privgen.models.initialise import seeded_weights


BATCH_SIZE = 4
"""Images in a step."""
AMPLIFIED = Amplification(1.5, gate="running_variance", eta=1.1)
"""The settings that cost most, at every step."""
_TOKENS = 16
Step = Callable[[Tensor, int], Tensor]
"""From x_t, (B, C, h, w), and the number of a step to x_{t-1}."""


def step_ratios(*, steps: int, seed: int = 0) -> dict[str, Measured]:
    """Compare the times of sampling steps with a network of the shipped model's size, network call included.

    The weights are random, which does not change the time. With a smaller network than this one of 7 million
    parameters, amplification takes a larger part of a step.

    Args:
        steps: of each kind; a few more come first and are not timed.
        seed: of weights and noise.

    Returns:
        Medians over pairs of steps that follow each other directly, in changing order: "amplify_step_ratio"
        (ancestral sampling, amplified over plain) and "variance_step_ratio" (with a learned variance over without).
    """
    plain = _make_step(steps, seed)
    amplified, learned = _make_step(steps, seed, AMPLIFIED), _make_step(steps, seed, learn_variance=True)
    config = UNet2DConditionModel.load_config(resolve_model(), subfolder="unet")
    shape = (BATCH_SIZE, config["in_channels"], config["sample_size"], config["sample_size"])
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return {
        "amplify_step_ratio": _ratio(plain, amplified, x, steps),
        "variance_step_ratio": _ratio(plain, learned, x, steps),
    }


def _make_step(
    steps: int, seed: int, amplification: Amplification | None = None, *, learn_variance: bool = False
) -> Step:
    config = dict(UNet2DConditionModel.load_config(resolve_model(), subfolder="unet"))
    if learn_variance:
        config["out_channels"] *= 2
    with seeded_weights(seed):
        unet = UNet2DConditionModel.from_config(config).eval()
    variance_type = "learned_range" if learn_variance else "fixed_small"
    plain = DDPMScheduler.from_pretrained(resolve_model(), subfolder="scheduler", variance_type=variance_type)
    scheduler = plain if amplification is None else AmplifiedScheduler(plain, amplification)
    scheduler.set_timesteps(steps)
    prompt_embeds = torch.zeros(BATCH_SIZE, _TOKENS, config["cross_attention_dim"])
    generator = torch.Generator().manual_seed(seed)

    def step(x: Tensor, number: int) -> Tensor:
        t = scheduler.timesteps[number % steps]
        output = unet(x, t, encoder_hidden_states=prompt_embeds).sample
        stepped: Tensor = scheduler.step(output, t, x, return_dict=False, generator=generator)[0]
        return stepped

    return step


@torch.inference_mode()
def _ratio(plain: Step, other: Step, x: Tensor, steps: int) -> Measured:
    ratios, warm_up = [], 3
    for number in range(-warm_up, steps):
        seconds = {}
        for step in (plain, other) if number % 2 else (other, plain):
            started = perf_counter()
            step(x, number)
            seconds[step] = perf_counter() - started
        if number >= 0:
            ratios.append(seconds[other] / seconds[plain])
    return median(ratios)
