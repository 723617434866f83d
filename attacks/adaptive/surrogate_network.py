"""The network that an attacker without the extractor trains: does an image carry the mark or not?"""

from __future__ import annotations

from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional as F

from privgen.io.pixels import resize
from privgen.models.initialise import seeded_weights


_OF_EACH = 16
"""Marked images in a training batch, and as many unmarked ones."""

_LEARNING_RATE, _WEIGHT_DECAY = 2e-3, 0.01
_NOISE, _BRIGHTNESS, _CONTRAST = 0.01, 0.1, 0.2  # of the augmentation


class SurrogateExtractor(ModelMixin, ConfigMixin):
    """A small convolutional network from an image to one logit, which is positive for marked images.

    It sees colours, and their differences from a local mean. Its last layer keeps places apart, because a mark is
    fixed to its place. Without batch normalisation, the logit of an image depends on that image alone.

    Args:
        size: side in pixels of the square that images are resized to.
        channels: outputs of the convolutions; each convolution halves the side.
    """

    @register_to_config
    def __init__(self, size: int, channels: tuple[int, ...] = (16, 24, 32)) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise((6, *channels))
        )
        side = -(-size // 2 ** len(channels))
        self.head = nn.Linear(channels[-1] * side**2, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Tell whether images are marked.

        Args:
            images: (B, 3, H, W) in [0, 1], any H and W.

        Returns:
            (B,) logits, above 0 for images that look marked.
        """
        x = resize(images.to(self.head.weight), (self.config.size, self.config.size)).clamp(0, 1)
        fine = x - F.avg_pool2d(F.pad(x, (2, 2, 2, 2), mode="replicate"), 5, stride=1)
        h = torch.cat([2 * x - 1, 10 * fine], dim=1)
        for convolution in self.convolutions:
            h = F.silu(convolution(h))
        logits: Tensor = self.head(h.flatten(1))[:, 0]
        return logits


def fit_surrogate(marked: Tensor, unmarked: Tensor, *, steps: int, seed: int = 0) -> SurrogateExtractor:
    """Train a surrogate extractor, as the surrogate attack of WAVES (arXiv 2401.08573) does with a larger network.

    Training varies brightness and contrast, and adds a little noise. It neither flips nor crops, because a mark is
    fixed to its place.

    Args:
        marked: (N, 3, S, S) in [0, 1], all with the mark of one key.
        unmarked: (M, 3, S, S) in [0, 1].
        steps: training steps, each with 16 images of each kind.
        seed: of weights, batches and variations.

    Returns:
        The network on the CPU, in evaluation mode, without gradients of its weights.

    Raises:
        ValueError: images that are not squares of one size, or steps below 1.
    """
    if marked.ndim != 4 or marked.shape[1:] != unmarked.shape[1:] or marked.shape[2] != marked.shape[3]:
        raise ValueError(f"expected squares of one size, got {tuple(marked.shape)} and {tuple(unmarked.shape)}")
    if steps < 1:
        raise ValueError(f"expected steps >= 1, got {steps}")
    with seeded_weights(seed):
        network = SurrogateExtractor(size=marked.shape[-1])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    truth = torch.tensor([1.0] * _OF_EACH + [0.0] * _OF_EACH)
    with torch.enable_grad():
        for _ in range(steps):
            taken = [kind[torch.randint(len(kind), (_OF_EACH,), generator=generator)] for kind in (marked, unmarked)]
            logits = network(_varied(torch.cat(taken).float(), generator))
            optimizer.zero_grad()
            F.binary_cross_entropy_with_logits(logits, truth).backward()
            optimizer.step()
            schedule.step()
    return network.eval().requires_grad_(False)


def _varied(images: Tensor, generator: torch.Generator) -> Tensor:
    """Change brightness and contrast of images at random, and add a little noise."""
    batch = len(images)
    contrast = 1 + _CONTRAST * (2 * torch.rand(batch, 1, 1, 1, generator=generator) - 1)
    brightness = _BRIGHTNESS * (2 * torch.rand(batch, 3, 1, 1, generator=generator) - 1)
    noise = _NOISE * torch.randn(images.shape, generator=generator)
    return (contrast * (images - 0.5) + 0.5 + brightness + noise).clamp(0, 1)
