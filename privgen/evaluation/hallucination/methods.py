"""The sampling methods that `evaluate hallucination` compares, and how a trained network samples with one of them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from privgen.hallucination.amplification import Amplification
from privgen.hallucination.detector import HallucinationDetector
from privgen.hallucination.learned_variance import HybridLoss
from privgen.hallucination.running_variance import WATCHED
from privgen.hallucination.scheduler import AmplifiedScheduler
from privgen.metrics.hallucination import keep_best


Sampler = Literal["ddim", "ddpm"]
SAMPLERS: tuple[Sampler, ...] = ("ddim", "ddpm")
Denoise = Callable[[Tensor, Tensor], Tensor]
"""From x_t, (B, ...), and a timestep to the network's output, with the learned variance if it has one."""

LOSSES: Mapping[str, HybridLoss | None] = {
    "simple": None,
    "vsm": HybridLoss(vsm=1.0),
    "precision": HybridLoss(precision=0.01),
}
"""What networks minimise: "simple" is the squared error; "vsm" is the hybrid loss with the published penalty on the
variance, which has no effect; "precision" is the hybrid loss with the penalty that has one."""


@dataclass(frozen=True)
class SamplingMethod:
    """One way to sample.

    Attributes:
        sampler: "ddim" is deterministic, "ddpm" is ancestral.
        loss: of the network that samples, one of `LOSSES`.
        amplification: of the score; None is plain sampling.
        reject: fraction of the samples that the detector drops.
    """

    sampler: Sampler
    loss: str = "simple"
    amplification: Amplification | None = None
    reject: float = 0.0


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A trained network, and what sampling needs to know of it.

    Attributes:
        denoise: the network.
        scheduler: with the noise schedule and prediction type of its training.
        detector: finds its hallucinations.
    """

    denoise: Denoise
    scheduler: DDPMScheduler
    detector: HallucinationDetector


@dataclass(frozen=True)
class Budget:
    """How many samples a method may draw, with how many steps.

    Attributes:
        samples: to draw.
        steps: of each.
    """

    samples: int
    steps: int


@dataclass(frozen=True)
class Sampled:
    """The samples that a method keeps.

    Attributes:
        x: (N, ...).
        scores: of the detector, (N,); high scores indicate hallucinations.
        running_variance: variance of the predicted x_0 over the last timesteps, (N,), the detector of
            arXiv 2406.09358.
    """

    x: Tensor
    scores: Tensor
    running_variance: Tensor


def baseline(methods: Mapping[str, SamplingMethod], name: str) -> str:
    """The name of the method that another is compared with: the first with the same sampler."""
    return next(first for first, method in methods.items() if method.sampler == methods[name].sampler)


def affordable(nfe: int, kept: int, method: SamplingMethod, detector: HallucinationDetector) -> Budget:
    """The most steps with which a sample that is kept costs at most `nfe` network calls; at least two.

    Args:
        nfe: network calls for a sample that is kept.
        kept: how many samples are kept.
        method: says how many samples it drops.
        detector: finds those; its calls count only if some are dropped.
    """
    detector_calls = detector.calls if method.reject else 0
    drawn = math.ceil(kept / (1 - method.reject))
    return Budget(drawn, max(nfe * kept // drawn - detector_calls, 2))


def sample(
    model: TrainedModel,
    method: SamplingMethod,
    *,
    nfe: int,
    shape: tuple[int, ...],
    generator: torch.Generator,
    chunk: int,
) -> Sampled:
    """Sample at `nfe` network calls for every sample that is kept.

    A method that drops samples draws more of them with fewer steps, and pays for the detector's calls.

    Args:
        model: the network that samples.
        method: how it samples.
        nfe: network calls for a sample that is kept.
        shape: of all samples that are kept, (N, ...).
        generator: of all noise.
        chunk: how many samples are drawn at a time.
    """
    kept, scheduler = shape[0], _build_scheduler(model.scheduler, method)
    budget = affordable(nfe, kept, method, model.detector)
    noise = torch.randn(budget.samples, *shape[1:], generator=generator)
    parts = [_reverse(model.denoise, scheduler, method, part, budget.steps, generator) for part in noise.split(chunk)]
    x, running_variance = (torch.cat(found) for found in zip(*parts, strict=True))
    with torch.inference_mode():
        scores = [model.detector.scores(model.denoise, scheduler, part) for part in x.split(chunk)]
    best = keep_best(torch.cat(scores), (budget.samples - kept) / budget.samples)
    return Sampled(x[best], torch.cat(scores)[best], running_variance[best])


def _build_scheduler(training: DDPMScheduler, method: SamplingMethod) -> DDPMScheduler | DDIMScheduler:
    if method.sampler == "ddim":
        return DDIMScheduler.from_config(training.config)
    if LOSSES[method.loss] is None:
        return training
    return DDPMScheduler.from_config(training.config, variance_type="learned_range")


@torch.inference_mode()
def _reverse(
    denoise: Denoise,
    scheduler: DDPMScheduler | DDIMScheduler,
    method: SamplingMethod,
    x: Tensor,
    steps: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """From noise (B, ...) to samples, and the running variance of each, (B,)."""
    amplified = AmplifiedScheduler(scheduler, method.amplification, watch=WATCHED)
    options = {"generator": generator} if isinstance(scheduler, DDPMScheduler) else {}
    amplified.set_timesteps(steps)
    for t in amplified.timesteps:
        x = amplified.step(denoise(x, t), t, x, return_dict=False, **options)[0]
    return x, amplified.running_variance()
