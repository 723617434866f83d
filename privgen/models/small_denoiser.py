"""Small networks for evaluations that train many of them: a denoiser and a classifier of garments."""

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, pixel_shuffle, pixel_unshuffle, silu


_CONDITION = 128  # numbers that time and class are embedded in
_GROUPS = 8  # of group normalisation


class SmallDenoiser(nn.Module):
    """A convolutional denoiser at two resolutions, with fewer than a million parameters.

    Args:
        channels: of the images.
        patch: side of the patches that the first convolution takes as one position.
        width: channels at the finer resolution, a multiple of 8.
        inner: channels at half that resolution, a multiple of 8.
        depth: blocks at half that resolution.
        classes: how many classes it is conditioned on; 0 is unconditional.
        learn_variance: return twice the channels, for `variance_type` learned_range. The variance does not train the
            features: its loss, large where the variance of the reverse step is small, would drown the other loss. It
            is bounded to (-1, 1), since values that are right for the short steps of training are far too large for
            the longer steps of sampling.
    """

    def __init__(
        self,
        channels: int,
        *,
        patch: int = 1,
        width: int = 64,
        inner: int = 96,
        depth: int = 2,
        classes: int = 0,
        learn_variance: bool = False,
    ) -> None:
        super().__init__()
        self.patch, hidden, flat = patch, _CONDITION, channels * patch**2
        self.frequencies: Tensor
        self.register_buffer("frequencies", 1000 * torch.exp(-math.log(10_000) * torch.arange(32) / 32))
        self.time = nn.Sequential(nn.Linear(64, hidden), nn.SiLU(), nn.Linear(hidden, hidden))
        self.label = nn.Embedding(classes, hidden) if classes else None
        self.enter = nn.Conv2d(flat, width, 3, padding=1)
        self.first = _Block(width, hidden)
        self.down = nn.Conv2d(4 * width, inner, 1)
        self.inner = nn.ModuleList(_Block(inner, hidden) for _ in range(depth))
        self.up = nn.Conv2d(inner, 4 * width, 1)
        self.join = nn.Conv2d(2 * width, width, 1)
        self.last = _Block(width, hidden)
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.leave = nn.Conv2d(width, flat, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        self.variance = nn.Conv2d(width, flat, 3, padding=1) if learn_variance else None

    def forward(self, x_t: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict what the network was trained to predict, such as noise.

        Args:
            x_t: (B, C, H, W), sides divisible by `patch`.
            t: (B,), in [0, 1]; 1 is pure noise.
            labels: (B,), int64; used only by a network with classes.

        Returns:
            (B, C, H, W), or (B, 2 C, H, W) with a learned variance.
        """
        phases = t[:, None] * self.frequencies
        condition = self.time(torch.cat([phases.sin(), phases.cos()], 1))
        if self.label is not None and labels is not None:
            condition = condition + self.label(labels)
        condition = silu(condition)
        fine = self.first(self.enter(pixel_unshuffle(x_t, self.patch)), condition)
        height, width = fine.shape[-2:]
        coarse = self.down(pixel_unshuffle(pad(fine, (0, width % 2, 0, height % 2)), 2))
        for block in self.inner:
            coarse = block(coarse, condition)
        spread = pixel_shuffle(self.up(coarse), 2)[..., :height, :width]
        h = silu(self.norm(self.last(self.join(torch.cat([fine, spread], 1)), condition)))
        outputs = [self.leave(h)] if self.variance is None else [self.leave(h), self.variance(h.detach()).tanh()]
        return pixel_shuffle(torch.cat(outputs, 1), self.patch)


class GarmentClassifier(nn.Module):
    """A convolutional classifier of garments in images of 28 x 28 pixels, with features that can be compared.

    Args:
        classes: how many classes it distinguishes.
        features: how many features the last layer takes.
    """

    def __init__(self, classes: int = 10, features: int = 64) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 32, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.SiLU(),
            nn.Conv2d(64, 64, 3, padding=1),
            nn.SiLU(),
            nn.Flatten(),
            nn.Linear(64 * 49, features),
        )
        self.head = nn.Linear(features, classes)

    def features(self, images: Tensor) -> Tensor:
        """Features (B, features) of images (B, 1, 28, 28) in [-1, 1]."""
        return silu(self.body(images))

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, 1, 28, 28) in [-1, 1]."""
        return self.head(self.features(images))


class _Block(nn.Module):
    """A residual block of two convolutions; the condition scales and shifts their input."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(_GROUPS, width)
        self.modulation = nn.Linear(hidden, 2 * width)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv_2.weight)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition)[:, :, None, None].chunk(2, 1)
        return h + self.conv_2(silu(self.conv_1(self.norm(h) * (1 + scale) + shift)))
