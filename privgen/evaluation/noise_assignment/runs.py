"""One run of `evaluate training`: a small model learns with one method from one seed, and its quality is measured."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any

import torch
from diffusers import DDIMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn.functional import mse_loss

from privgen.diffusion.parameterisation import NoiseLevel, add_noise, prediction_target
from privgen.evaluation.noise_assignment.data import TrainingData
from privgen.evaluation.noise_assignment.settings import AssignmentMethod, RunOptions, TrainingSetting
from privgen.models.initialise import seeded_weights
from privgen.models.small_denoiser import SmallDenoiser
from privgen.training.mini.text_to_image import build_scheduler
from privgen.training.muon import Muon
from privgen.training.timesteps import even_times


Batch = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Images and noise, both (B, C, H, W), times (B,) in [0, 1), and labels (B,)."""
Loss = Callable[[SmallDenoiser, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""The loss of a network on a `Batch`."""


@dataclass(frozen=True)
class Checkpoint:
    """The quality of a model after some steps.

    Attributes:
        step: optimiser steps.
        seconds: time of these steps, with assignment and without judging.
        loss: mean since the last checkpoint.
        quality: what `Judge.measure` returns, for every number of sampling steps.
    """

    step: int
    seconds: float
    loss: float
    quality: dict[str, dict[str, float]]


def train_curve(
    data: TrainingData,
    setting: TrainingSetting,
    method: AssignmentMethod,
    *,
    seed: int,
    options: RunOptions,
    device: torch.device,
    on_step: Callable[[], Any] = lambda: None,
) -> list[Checkpoint]:
    """Train a model, and measure its quality at the checkpoints.

    Weights, batches, timesteps, noise and the noise of the samples depend on the seed only, so that methods differ by
    nothing but the assignment.

    Args:
        data: what the model learns.
        setting: objective and sampler.
        method: how noise is assigned.
        seed: of the run.
        options: how long and how fast the model learns.
        device: where it learns.
        on_step: called after every step.
    """
    network = build_network(data, seed).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # PyTorch's overloads lack it
    optimizer = Muon(network.parameters(), lr=options.learning_rate)
    average = EMAModel(network.parameters(), decay=options.ema_decay, foreach=True)
    loss_function = loss_of(setting)
    stops, curve, losses = options.measured_at(), [], []
    _warm_up(network, loss_function, data, options)
    spent, started = 0.0, perf_counter()
    for step, batch in enumerate(batches(data, method, seed=seed, options=options, device=device), 1):
        for group in optimizer.param_groups:
            group["lr"] = options.learning_rate * min(step / max(options.warmup, 1), 1.0)
        with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
            loss = loss_function(network, *batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        losses.append(float(loss.detach()))
        if step in stops:
            spent += perf_counter() - started
            average.store(network.parameters())
            average.copy_to(network.parameters())
            quality = measure_network(network, data, setting, seed=seed, options=options, device=device)
            average.restore(network.parameters())
            curve.append(Checkpoint(step, round(spent, 3), sum(losses) / len(losses), quality))
            losses, started = [], perf_counter()
        on_step()
    return curve


def build_network(data: TrainingData, seed: int) -> SmallDenoiser:
    """Build an untrained network for the data."""
    with seeded_weights(seed):
        return SmallDenoiser(data.x_0.shape[1], patch=data.patch, classes=data.classes)


def _warm_up(network: SmallDenoiser, loss_function: Loss, data: TrainingData, options: RunOptions) -> None:
    """Call everything once, so that what libraries prepare at the first call counts for no method's time."""
    device = next(network.parameters()).device
    x_0 = torch.zeros(options.batch_size, *data.x_0.shape[1:], device=device)
    t = torch.zeros(len(x_0), device=device)
    with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
        loss = loss_function(network, x_0, x_0, t, t.long() if data.classes else None)
    loss.backward()
    network.zero_grad()


def batches(
    data: TrainingData, method: AssignmentMethod, *, seed: int, options: RunOptions, device: torch.device
) -> Iterator[Batch]:
    """The batches of a run, with the noise that a method assigns.

    Args:
        data: what they are drawn from.
        method: how noise is assigned.
        seed: of the run.
        options: number and size of the batches.
        device: of the batches.
    """
    size = options.batch_size
    for first in range(0, options.steps, method.batches):
        drawn = [_draw(data, seed, step, size) for step in range(first, min(first + method.batches, options.steps))]
        x_0, noise = (torch.cat([batch[i] for batch in drawn]).to(device) for i in (0, 1))
        rows = torch.cat([batch[3] for batch in drawn])
        labels = None if data.labels is None else data.labels[rows].to(device)
        # The candidates have a generator of their own, so that the batches are the same for every method.
        noise = method.assign(x_0, noise, labels, torch.Generator().manual_seed(_seed_of_step(seed, first) + 500_000))
        for i, batch in enumerate(drawn):
            part = slice(i * size, (i + 1) * size)
            yield x_0[part], noise[part], batch[2].to(device), None if labels is None else labels[part]


def _seed_of_step(seed: int, step: int) -> int:
    return (seed * 1_000_003 + step) % 2**62


def _draw(data: TrainingData, seed: int, step: int, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(_seed_of_step(seed, step))
    rows = torch.randint(len(data.x_0), (size,), generator=generator)
    noise = torch.randn(size, *data.x_0.shape[1:], generator=generator)
    return data.x_0[rows], noise, even_times(size, generator), rows


def noise_schedule(betas: str) -> DDIMScheduler:
    """The scheduler with the noise schedule that `TrainingSetting.betas` names, for v-prediction."""
    if betas == "scaled_linear":
        return build_scheduler()
    return DDIMScheduler(
        beta_schedule=betas, prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False
    )


def loss_of(setting: TrainingSetting) -> Loss:
    """The loss that a network minimises."""
    return _flow_loss if setting.objective == "flow" else partial(_ddim_loss, noise_schedule(setting.betas))


def _ddim_loss(
    scheduler: DDIMScheduler, network: SmallDenoiser, x_0: Tensor, noise: Tensor, t: Tensor, labels: Tensor | None
) -> Tensor:
    timesteps = (t * len(scheduler.alphas_cumprod)).long()
    x_t = scheduler.add_noise(x_0, noise, timesteps)
    predicted = network(x_t, timesteps / len(scheduler.alphas_cumprod), labels)
    return mse_loss(predicted.float(), scheduler.get_velocity(x_0, noise, timesteps))


def _flow_loss(network: SmallDenoiser, x_0: Tensor, noise: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
    """Flow matching along straight paths (arXiv 2210.02747, arXiv 2209.03003)."""
    sigma = t.view(-1, 1, 1, 1)
    level = NoiseLevel(1 - sigma, sigma)
    predicted = network(add_noise(x_0, noise, level), t, labels).float()
    return mse_loss(predicted, prediction_target(x_0, noise, level, "flow_prediction"))


@torch.inference_mode()
def sample(
    network: SmallDenoiser, setting: TrainingSetting, x: Tensor, labels: Tensor | None, *, steps: int
) -> Tensor:
    """Sample from noise.

    Args:
        network: trained for the setting.
        setting: objective and noise schedule.
        x: noise, (B, C, H, W), standard normal.
        labels: (B,), or None.
        steps: network calls.

    Returns:
        (B, C, H, W).
    """
    if setting.objective == "flow":
        times = torch.linspace(1, 0, steps + 1, device=x.device)
        for t, following in pairwise(times):
            x = x + (following - t) * network(x, t.expand(len(x)), labels).float()
        return x
    scheduler = noise_schedule(setting.betas)
    scheduler.set_timesteps(steps)
    for timestep in scheduler.timesteps:
        t = (timestep / len(scheduler.alphas_cumprod)).to(x.device).expand(len(x))
        x = scheduler.step(network(x, t, labels).float(), timestep, x).prev_sample
    return x


def measure_network(
    network: SmallDenoiser,
    data: TrainingData,
    setting: TrainingSetting,
    *,
    seed: int,
    options: RunOptions,
    device: torch.device,
) -> dict[str, dict[str, float]]:
    """The quality of a network's samples, by number of sampling steps.

    Noise and labels are the same for all networks of a seed.
    """
    generator = torch.Generator().manual_seed(_seed_of_step(seed, 900_000))
    noise = torch.randn(options.samples, *data.x_0.shape[1:], generator=generator).to(device)
    labels = (torch.arange(options.samples) % data.classes).to(device) if data.classes else None
    found = {}
    for steps in setting.sampling:
        with torch.autocast(device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
            x = sample(network, setting, noise, labels, steps=steps)
        found[str(steps)] = data.judge.measure(x, labels)
    return found
