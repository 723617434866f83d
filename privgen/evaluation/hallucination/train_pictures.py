"""Training of small unconditional denoisers of pictures, in minutes."""

import math
from dataclasses import dataclass, field
from typing import Literal

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import mse_loss

from privgen.hallucination.learned_variance import HybridLoss, hybrid_loss
from privgen.models.small_denoiser import SmallDenoiser
from privgen.training.muon import Muon
from privgen.training.timesteps import even_times


@dataclass(frozen=True)
class PictureTraining:
    """How a denoiser of pictures is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: pictures a step.
        learning_rate: of Muon, after a twentieth of the steps; it falls to zero in a half cosine.
        patch: of the network, like what follows; see `SmallDenoiser`.
        width: channels at the finer resolution.
        inner: channels at the coarser one.
        depth: blocks there.
        ema_decay: of the averaged weights, which are what is returned.
        training_samples: size of the training set.
        variance: what a network with a learned variance minimises; None learns no variance.
        variance_steps: optimiser steps of the variance alone, as a share of `steps`; see `train_variance`.
        dtype: of the network's arithmetic; "bfloat16" is faster where the processor has it.
    """

    steps: int = 300
    batch_size: int = 64
    learning_rate: float = 2e-3
    patch: int = 8
    width: int = 64
    inner: int = 96
    depth: int = 2
    ema_decay: float = 0.99
    training_samples: int = 4000
    variance: HybridLoss | None = field(default=None)
    variance_steps: float = 0.3
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


def picture_scheduler() -> DDPMScheduler:
    """The noise schedule that these denoisers are trained and sampled with.

    They predict x_0: what a patch shows has few dimensions and fits through a narrow network, its noise does not.
    """
    return DDPMScheduler(1000, prediction_type="sample", timestep_spacing="trailing")


def build_picture_network(channels: int, training: PictureTraining, *, seed: int) -> SmallDenoiser:
    """The untrained network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # noqa: TID251 - layers are initialised from the global generator only
        network = SmallDenoiser(
            channels,
            patch=training.patch,
            width=training.width,
            inner=training.inner,
            depth=training.depth,
            learn_variance=training.variance is not None,
        )
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload] # PyTorch's overloads lack it
    return network


def train_pictures(data: Tensor, training: PictureTraining, *, seed: int) -> SmallDenoiser:
    """Train a network that predicts x_0.

    Args:
        data: training set, (N, C, H, W) in [-1, 1], sides divisible by the patch.
        training: how.
        seed: of weights, batches, timesteps and noise.

    Returns:
        The network with averaged weights.
    """
    network = build_picture_network(data.shape[1], training, seed=seed)
    _fit(network, list(network.parameters()), data, training, steps=training.steps, seed=seed)
    return network.eval()


def train_variance(finished: SmallDenoiser, data: Tensor, training: PictureTraining, *, seed: int) -> SmallDenoiser:
    """Teach a finished network the variance of its reverse steps; what it predicts stays as it is.

    A hybrid loss with the mean detached trains the two side by side. As this network's variance has no part in its
    features, the same comes of training them one after the other, and one prediction serves several variances.

    Args:
        finished: a network without a learned variance; it is left as it was.
        data: its training set, (N, C, H, W) in [-1, 1].
        training: how, with a `variance`.
        seed: of weights, batches, timesteps and noise.

    Returns:
        The network with twice the channels.

    Raises:
        ValueError: no `variance`.
    """
    if training.variance is None:
        raise ValueError("expected a training with a variance")
    network = build_picture_network(data.shape[1], training, seed=seed)
    network.load_state_dict(finished.state_dict(), strict=False)
    head = [weights for name, weights in network.named_parameters() if name.startswith("variance.")]
    network.requires_grad_(False)
    for weights in head:
        weights.requires_grad_(True)
    _fit(network, head, data, training, steps=max(round(training.variance_steps * training.steps), 1), seed=seed)
    return network.requires_grad_(True).eval()


def _fit(
    network: SmallDenoiser, weights: list[Parameter], data: Tensor, training: PictureTraining, *, steps: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    optimizer = Muon(weights, lr=training.learning_rate, dtype=getattr(torch, training.dtype))
    average = EMAModel(weights, decay=training.ema_decay, foreach=True)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = training.learning_rate * _pace(step, steps)
        x_0 = data[torch.randint(len(data), (training.batch_size,), generator=generator)]
        _loss(network, x_0, training, generator).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step(weights)
    average.copy_to(weights)


def _pace(step: int, steps: int) -> float:
    """Share of the peak learning rate."""
    return min((step + 1) / max(steps // 20, 1), 1.0) * (1 + math.cos(math.pi * step / steps)) / 2


def _loss(network: SmallDenoiser, x_0: Tensor, training: PictureTraining, generator: torch.Generator) -> Tensor:
    scheduler = picture_scheduler()
    timesteps = len(scheduler.alphas_cumprod)
    t = (even_times(len(x_0), generator) * timesteps).long()
    noise = torch.randn(x_0.shape, generator=generator)
    x_t = scheduler.add_noise(x_0, noise, t)
    with torch.autocast(x_0.device.type, torch.bfloat16, enabled=training.dtype == "bfloat16"):
        output = network(x_t, t / timesteps)
    output = output.float()
    if training.variance is None:
        return mse_loss(output, x_0)
    alphas, settings = scheduler.alphas_cumprod, training.variance
    return hybrid_loss(output, x_0, noise, t, alphas, prediction="sample", settings=settings)["loss"].mean()
