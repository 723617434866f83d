"""Train small denoisers of toy data, in seconds."""

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch.nn.functional import mse_loss

from privgen.data.toys import GaussianMixture
from privgen.diffusion.parameterisation import NoiseLevel, add_noise
from privgen.hallucination.learned_variance import HybridLoss, hybrid_loss
from privgen.models.initialise import seeded_weights
from privgen.models.toy import ToyDenoiser
from privgen.training.timesteps import even_times


@dataclass(frozen=True)
class ToyTraining:
    """How a denoiser of toy data is trained.

    Attributes:
        steps: optimiser steps.
        batch_size: samples in a step.
        learning_rate: at the start; it falls to zero along a cosine.
        width: of the network.
        layers: of the network.
        training_samples: size of the training set.
        variance: loss of a network with a learned variance; None learns no variance.
    """

    steps: int = 10_000
    batch_size: int = 256
    learning_rate: float = 2e-3
    width: int = 128
    layers: int = 3
    training_samples: int = 20_000
    variance: HybridLoss | None = None


def toy_scheduler() -> DDPMScheduler:
    """The scheduler for training and sampling."""
    return DDPMScheduler(1000, clip_sample=False, timestep_spacing="trailing")


def build_toy_network(dimensions: int, training: ToyTraining, *, seed: int) -> ToyDenoiser:
    """Build an untrained network for samples of `dimensions` numbers."""
    with seeded_weights(seed):
        return ToyDenoiser(dimensions, training.width, training.layers, training.variance is not None)


def train_toy(data: torch.Tensor, training: ToyTraining, *, seed: int) -> ToyDenoiser:
    """Train a network that predicts noise.

    Args:
        data: the training set, (N, D).
        training: the settings.
        seed: of weights, batches, timesteps and noise.
    """
    network = build_toy_network(data.shape[1], training, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(network.parameters(), lr=training.learning_rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, training.steps)
    alphas = toy_scheduler().alphas_cumprod
    for _ in range(training.steps):
        x_0 = data[torch.randint(len(data), (training.batch_size,), generator=generator)]
        t = (even_times(len(x_0), generator) * len(alphas)).long()
        noise = torch.randn(x_0.shape, generator=generator)
        output = network(add_noise(x_0, noise, NoiseLevel.from_alpha_bar(alphas[t][:, None])), t).sample
        if training.variance is None:
            loss = mse_loss(output, noise)
        else:
            loss = hybrid_loss(output, x_0, noise, t, alphas, settings=training.variance)["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network.eval()


def training_set(mixture: GaussianMixture, training: ToyTraining, *, seed: int) -> torch.Tensor:
    """Draw the training set, (N, D)."""
    return mixture.sample(training.training_samples, torch.Generator().manual_seed(seed + 1_000_003))
