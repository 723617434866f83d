"""Ways to sample that `evaluate hallucination` compares, and what the networks are trained with."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from diffusers import DDIMScheduler, DDPMScheduler
from torch import Tensor

from privgen.diffusion.amplification import Amplification, Window
from privgen.diffusion.amplified_scheduler import AmplifiedScheduler
from privgen.diffusion.detector import Detector
from privgen.diffusion.learned_variance import HybridLoss
from privgen.diffusion.trajectory import WATCHED
from privgen.metrics.hallucination import keep_best


Sampler = Literal["ddim", "ddpm"]
MIDWAY: Window = (400.0, 600.0)
"""Timesteps at which a network decides what is in a picture."""
_SEEN_BY = 2  # predictions at least, of which there is a variance
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
        screen: share of the samples begun to drop midway: those of which the network decides last what is there, by
            the variance of predicted x_0 over `MIDWAY`. It costs no call of its own, and spares the later ones.
    """

    sampler: Sampler
    loss: str = "simple"
    amplification: Amplification | None = None
    reject: float = 0.0
    screen: float = 0.0


@dataclass(frozen=True)
class Budget:
    """What is to be computed for the samples that are kept.

    Attributes:
        begun: samples.
        finished: of these, after the screening.
        steps: of each of these.
        early: steps before the screening; 0 if there is none.
    """

    begun: int
    finished: int
    steps: int
    early: int = 0

    def calls(self, detector: int) -> int:
        """Network calls, with so many of the detector for every finished sample."""
        return self.begun * self.early + self.finished * (self.steps - self.early + detector)


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


def affordable(
    nfe: int, kept: int, method: Method, detector: Detector, timesteps: Callable[[int], Tensor] | None = None
) -> Budget:
    """As many steps as can be, so that a sample that is kept costs `nfe` network calls at most.

    Args:
        nfe: network calls a kept sample.
        kept: samples.
        method: how many it drops.
        detector: of hallucinations; none is asked if the method does not reject by it.
        timesteps: from a number of steps to the scheduler's timesteps; only methods that screen need it.

    Raises:
        ValueError: a method screens, and there are no timesteps, or so few calls leave less than two steps to see by.
    """
    asked = detector.calls if method.reject else 0
    finished = math.ceil(kept / (1 - method.reject))
    begun = math.ceil(finished / (1 - method.screen))

    def budget(steps: int) -> Budget | None:
        if not method.screen:
            return Budget(begun, finished, steps)
        if timesteps is None:
            raise ValueError("expected no screening where samples cannot be looked at midway")
        times = timesteps(steps)
        early, before = (int((times >= edge).sum()) for edge in (MIDWAY[0], MIDWAY[1] + 1))
        return Budget(begun, finished, steps, early) if early - before >= _SEEN_BY else None

    possible = (found for steps in range(nfe, 1, -1) if (found := budget(steps)) is not None)
    enough = next((found for found in possible if found.calls(asked) <= nfe * kept), budget(2))
    if enough is None:
        raise ValueError(f"{nfe} network calls a sample are too few to screen by")
    return enough


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
    budget = affordable(nfe, kept, method, detector, partial(_timesteps, scheduler))
    run = _Run(denoise, scheduler, method.amplification, budget.steps, generator)
    x = torch.randn(budget.begun, *shape[1:], generator=generator)
    if budget.early:
        parts = [run.between(part, 0, budget.early, MIDWAY) for part in x.split(chunk)]
        x, wavering = (torch.cat(found) for found in zip(*parts, strict=True))
        x = x[keep_best(wavering, (budget.begun - budget.finished) / budget.begun)]
    parts = [run.between(part, budget.early, budget.steps, WATCHED) for part in x.split(chunk)]
    x, wavering = (torch.cat(found) for found in zip(*parts, strict=True))
    scores = torch.cat([run.scores(detector, part) for part in x.split(chunk)])
    best = keep_best(scores, (budget.finished - kept) / budget.finished)
    return Sampled(x[best], scores[best], wavering[best])


def _timesteps(scheduler: DDPMScheduler | DDIMScheduler, steps: int) -> Tensor:
    scheduler.set_timesteps(steps)
    return scheduler.timesteps


@dataclass(frozen=True, eq=False)
class _Run:
    """The reverse process of samples that go through it together."""

    denoise: Denoise
    scheduler: DDPMScheduler | DDIMScheduler
    amplification: Amplification | None
    steps: int
    generator: torch.Generator

    @torch.inference_mode()
    def between(self, x: Tensor, first: int, last: int, watch: Window) -> tuple[Tensor, Tensor]:
        """Samples (B, ...) after the steps first to last - 1, and how their predicted x_0 varied in a window, (B,)."""
        scheduler = AmplifiedScheduler(self.scheduler, self.amplification, watch=watch)
        noise = {"generator": self.generator} if isinstance(self.scheduler, DDPMScheduler) else {}
        scheduler.set_timesteps(self.steps)
        for t in scheduler.timesteps[first:last]:
            x = scheduler.step(self.denoise(x, t), t, x, return_dict=False, **noise)[0]
        return x, scheduler.trajectory_variance()

    @torch.inference_mode()
    def scores(self, detector: Detector, x: Tensor) -> Tensor:
        """What the detector says of finished samples (B, ...), (B,)."""
        return detector.scores(self.denoise, self.scheduler, x)
