"""Ways to sample that `evaluate hallucination` compares, and what the networks are trained with."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from privgen.diffusion.amplification import Amplification
from privgen.diffusion.amplified_scheduler import AmplifiedScheduler
from privgen.diffusion.detector import Detector
from privgen.diffusion.learned_variance import HybridLoss
from privgen.diffusion.trajectory import WATCHED
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
"""What the networks minimise: the squared error; the hybrid loss with the published, inert penalty on the variance;
the hybrid loss with the penalty that works."""


@dataclass(frozen=True)
class Method:
    """One way to sample.

    Attributes:
        sampler: deterministic (ddim) or ancestral (ddpm).
        loss: of the network that it samples from, one of `LOSSES`.
        amplification: of the score.
        reject: share of the samples to drop by the detector.
    """

    sampler: Sampler
    loss: str = "simple"
    amplification: Amplification | None = None
    reject: float = 0.0


@dataclass(frozen=True)
class Sampled:
    """What a method has drawn.

    Attributes:
        x: the samples that it keeps, (N, ...).
        scores: the detector's, (N,); high is bad.
        wavering: variance of their predicted x_0 over the last timesteps, (N,), the detector of arXiv 2406.09358.
    """

    x: Tensor
    scores: Tensor
    wavering: Tensor


def baseline(methods: Mapping[str, Method], name: str) -> str:
    """The method that another is compared with: the first of its sampler."""
    return next(first for first, method in methods.items() if method.sampler == methods[name].sampler)


def affordable(nfe: int, kept: int, reject: float, calls: int) -> tuple[int, int]:
    """How many samples to draw, and with how many steps, so that one that is kept costs `nfe` calls at most.

    Args:
        nfe: network calls a kept sample.
        kept: samples.
        reject: share of those drawn that is dropped; none is looked at if it is 0.
        calls: of the detector for each sample drawn.
    """
    if not reject:
        return kept, nfe
    drawn = math.ceil(kept / (1 - reject))
    return drawn, max(math.floor(nfe * kept / drawn) - calls, 2)


def build_scheduler(plain: DDPMScheduler, method: Method) -> DDPMScheduler | DDIMScheduler:
    """The scheduler that a method samples with, from that of the training."""
    if method.sampler == "ddim":
        return DDIMScheduler.from_config(plain.config)
    if LOSSES[method.loss] is None:
        return plain
    return DDPMScheduler.from_config(plain.config, variance_type="learned_range")


def sample(
    denoise: Denoise,
    plain: DDPMScheduler,
    method: Method,
    detector: Detector,
    *,
    nfe: int,
    shape: tuple[int, ...],
    generator: torch.Generator,
    chunk: int,
) -> Sampled:
    """Sample with a method, at `nfe` network calls for every sample that is kept.

    One that rejects draws more samples with fewer steps, and the detector's own calls are taken off too.

    Args:
        denoise: the network.
        plain: scheduler of its training.
        method: how.
        detector: of hallucinations.
        nfe: network calls a kept sample.
        shape: of what is kept, (N, ...).
        generator: of all noise.
        chunk: samples at a time.
    """
    kept = shape[0]
    drawn, steps = affordable(nfe, kept, method.reject, detector.calls)
    scheduler = AmplifiedScheduler(build_scheduler(plain, method), method.amplification, watch=WATCHED)
    x = torch.randn(drawn, *shape[1:], generator=generator)
    parts = [_run(denoise, scheduler, part, steps, detector, generator) for part in x.split(chunk)]
    x, scores, wavering = (torch.cat([part[i] for part in parts]) for i in range(3))
    best = keep_best(scores, (drawn - kept) / drawn)
    return Sampled(x[best], scores[best], wavering[best])


@torch.inference_mode()
def _run(
    denoise: Denoise,
    scheduler: AmplifiedScheduler,
    x: Tensor,
    steps: int,
    detector: Detector,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor]:
    ancestral = isinstance(scheduler.scheduler, DDPMScheduler)
    noise = {"generator": generator} if ancestral else {}
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x = scheduler.step(denoise(x, t), t, x, return_dict=False, **noise)[0]
    return x, detector.scores(denoise, scheduler.scheduler, x), scheduler.trajectory_variance()
