"""Ways to sample that `evaluate hallucination` compares, and what the networks are trained with."""

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
class Budget:
    """What is to be computed for the samples that are kept.

    Attributes:
        samples: drawn.
        steps: of each of these.
    """

    samples: int
    steps: int

    def calls(self, detector: int) -> int:
        """Network calls, with so many of the detector for every sample."""
        return self.samples * (self.steps + detector)


@dataclass(frozen=True)
class Sampled:
    """What a method has drawn.

    Attributes:
        x: the samples that it keeps, (N, ...).
        scores: the detector's, (N,); high is bad.
        running_variance: variance of their predicted x_0 over the last timesteps, (N,), the detector of arXiv 2406.09358.
    """

    x: Tensor
    scores: Tensor
    running_variance: Tensor


def baseline(methods: Mapping[str, Method], name: str) -> str:
    """The method that another is compared with: the first of its sampler."""
    return next(first for first, method in methods.items() if method.sampler == methods[name].sampler)


def affordable(nfe: int, kept: int, method: Method, detector: HallucinationDetector) -> Budget:
    """As many steps as can be, so that a sample that is kept costs `nfe` network calls at most, but two at least.

    Args:
        nfe: network calls a kept sample.
        kept: samples.
        method: how many it drops.
        detector: of hallucinations; none is asked if the method drops none.
    """
    asked = detector.calls if method.reject else 0
    drawn = math.ceil(kept / (1 - method.reject))
    return Budget(drawn, max(nfe * kept // drawn - asked, 2))


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
    detector: HallucinationDetector,
    *,
    nfe: int,
    shape: tuple[int, ...],
    generator: torch.Generator,
    chunk: int,
) -> Sampled:
    """Sample with a method, at `nfe` network calls for every sample that is kept.

    One that drops samples draws more of them with fewer steps, and the detector's own calls are taken off too.

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
    kept, scheduler = shape[0], build_scheduler(plain, method)
    budget = affordable(nfe, kept, method, detector)
    run = _Run(denoise, scheduler, method.amplification, budget.steps, generator)
    noise = torch.randn(budget.samples, *shape[1:], generator=generator)
    parts = [run(part) for part in noise.split(chunk)]
    x, running_variance = (torch.cat(found) for found in zip(*parts, strict=True))
    scores = torch.cat([run.scores(detector, part) for part in x.split(chunk)])
    best = keep_best(scores, (budget.samples - kept) / budget.samples)
    return Sampled(x[best], scores[best], running_variance[best])


@dataclass(frozen=True, eq=False)
class _Run:
    """The reverse process of samples that go through it together."""

    denoise: Denoise
    scheduler: DDPMScheduler | DDIMScheduler
    amplification: Amplification | None
    steps: int
    generator: torch.Generator

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From noise (B, ...) to samples, and how their predicted x_0 varied over the last timesteps, (B,)."""
        scheduler = AmplifiedScheduler(self.scheduler, self.amplification, watch=WATCHED)
        noise = {"generator": self.generator} if isinstance(self.scheduler, DDPMScheduler) else {}
        scheduler.set_timesteps(self.steps)
        for t in scheduler.timesteps:
            x = scheduler.step(self.denoise(x, t), t, x, return_dict=False, **noise)[0]
        return x, scheduler.running_variance()

    @torch.inference_mode()
    def scores(self, detector: HallucinationDetector, x: Tensor) -> Tensor:
        """What the detector says of finished samples (B, ...), (B,)."""
        return detector.scores(self.denoise, self.scheduler, x)
