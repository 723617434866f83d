"""Train small unconditional denoisers of images, in minutes."""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.nn import Parameter
from torch.nn.functional import mse_loss

from privgen.hallucination.learned_variance import HybridLoss, hybrid_loss
from privgen.models.initialise import seeded_weights
from privgen.models.small_denoiser import SmallDenoiser
from privgen.training.muon import Muon
from privgen.training.timesteps import even_times


@dataclass(frozen=True)
class PictureTraining:
    """How a denoiser of images is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: images in a step.
        learning_rate: of Muon at its peak. It rises over a twentieth of the steps and falls to zero along a cosine.
        patch: side of the network's patches; see `SmallDenoiser` for this and the next three.
        width: channels at the finer resolution.
        inner: channels at the coarser resolution.
        depth: blocks at the coarser resolution.
        ema_decay: of the averaged weights; the trained network has these.
        training_samples: size of the training set.
        variance: loss of a network with a learned variance; None learns no variance.
        variance_steps: optimiser steps that train the variance alone, as a fraction of `steps`; see `train_variance`.
        dtype: of the network's arithmetic; "bfloat16" is faster on processors that support it.
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
    variance: HybridLoss | None = None
    variance_steps: float = 0.3
    dtype: Literal["float32", "bfloat16"] = "bfloat16"


def picture_scheduler() -> DDPMScheduler:
    """The scheduler for training and sampling.

    The networks predict x_0: the content of a patch has few dimensions and fits through a narrow network, but its
    noise does not.
    """
    return DDPMScheduler(1000, prediction_type="sample", timestep_spacing="trailing")


def build_picture_network(channels: int, training: PictureTraining, *, seed: int) -> SmallDenoiser:
    """Build an untrained network."""
    with seeded_weights(seed):
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
        data: the training set, (N, C, H, W) in [-1, 1], with sides divisible by the patch.
        training: the settings.
        seed: of weights, batches, timesteps and noise.

    Returns:
        The network with averaged weights, in evaluation mode.
    """
    network = build_picture_network(data.shape[1], training, seed=seed)
    _fit(network, list(network.parameters()), data, training, steps=training.steps, seed=seed)
    return network.eval()


def train_variance(finished: SmallDenoiser, data: Tensor, training: PictureTraining, *, seed: int) -> SmallDenoiser:
    """Train a variance for the reverse steps of a finished network, whose predictions stay the same.

    The hybrid loss detaches the mean, and this network's variance does not train its features. So training the two one
    after the other gives the same as training them together, and one prediction serves several variances.

    Args:
        finished: a network without a learned variance; it is not changed.
        data: its training set, (N, C, H, W) in [-1, 1].
        training: the settings, with a `variance`.
        seed: of weights, batches, timesteps and noise.

    Returns:
        A new network with twice the channels, in evaluation mode.

    Raises:
        ValueError: `training` has no `variance`.
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
            group["lr"] = training.learning_rate * _rate(step, steps)
        x_0 = data[torch.randint(len(data), (training.batch_size,), generator=generator)]
        _loss(network, x_0, training, generator).backward()
        optimizer.step()
        optimizer.zero_grad()
        average.step(weights)
    average.copy_to(weights)


def _rate(step: int, steps: int) -> float:
    """The learning rate as a fraction of its peak."""
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
