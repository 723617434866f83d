"""What amplification and a learned variance cost: time of a sampling step with and without, in one run."""

from collections.abc import Callable
from time import perf_counter

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from torch import Tensor

from privgen.evaluation.intervals import Measured, median
from privgen.hallucination.amplification import Amplification
from privgen.hallucination.scheduler import AmplifiedScheduler
from privgen.hub import resolve_model


BATCH = 4
"""Images of a step."""
AMPLIFIED = Amplification(1.5, gate="running_variance", eta=1.1)
"""The dearest amplification there is, at every step."""
_WORDS = 16
Step = Callable[[Tensor, int], Tensor]


def step_ratios(*, steps: int, seed: int = 0) -> dict[str, Measured]:
    """Compare times of steps of the shipped model, network call included, one of each kind in turn.

    The weights are random, which takes the same time. Of smaller networks than this one, with its 7 million
    parameters, amplification takes a larger part.

    Args:
        steps: of each kind; a few more come first, which do not count.
        seed: of weights and noise.

    Returns:
        Medians over pairs of steps, right after each other, in changing order: "amplify_step_ratio" (ancestral
        sampling, amplified over plain), "variance_step_ratio" (with a learned variance over without).
    """
    plain = _stepper(steps, seed)
    amplified, learned = _stepper(steps, seed, AMPLIFIED), _stepper(steps, seed, learn_variance=True)
    x = torch.randn(BATCH, *_latent_shape(), generator=torch.Generator().manual_seed(seed))
    return {
        "amplify_step_ratio": _ratio(plain, amplified, x, steps),
        "variance_step_ratio": _ratio(plain, learned, x, steps),
    }


def _latent_shape() -> tuple[int, int, int]:
    config = UNet2DConditionModel.load_config(resolve_model(), subfolder="unet")
    return config["in_channels"], config["sample_size"], config["sample_size"]


def _stepper(
    steps: int, seed: int, amplification: Amplification | None = None, *, learn_variance: bool = False
) -> Step:
    config = dict(UNet2DConditionModel.load_config(resolve_model(), subfolder="unet"))
    if learn_variance:
        config["out_channels"] *= 2
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 - layers are initialised from the global generator only
        unet = UNet2DConditionModel.from_config(config).eval()
    kind = "learned_range" if learn_variance else "fixed_small"
    plain = DDPMScheduler.from_pretrained(resolve_model(), subfolder="scheduler", variance_type=kind)
    scheduler = plain if amplification is None else AmplifiedScheduler(plain, amplification)
    scheduler.set_timesteps(steps)
    words = torch.zeros(BATCH, _WORDS, config["cross_attention_dim"])
    generator = torch.Generator().manual_seed(seed)

    def step(x: Tensor, number: int) -> Tensor:
        t = scheduler.timesteps[number % steps]
        output = unet(x, t, encoder_hidden_states=words).sample
        made: Tensor = scheduler.step(output, t, x, return_dict=False, generator=generator)[0]
        return made

    return step


@torch.inference_mode()
def _ratio(plain: Step, other: Step, x: Tensor, steps: int) -> Measured:
    ratios, warm_up = [], 3
    for number in range(-warm_up, steps):
        order = (plain, other) if number % 2 else (other, plain)
        seconds = {step: _timed(step, x, number) for step in order}
        if number >= 0:
            ratios.append(seconds[other] / seconds[plain])
    return median(ratios)


def _timed(step: Step, x: Tensor, number: int) -> float:
    started = perf_counter()
    step(x, number)
    return perf_counter() - started
