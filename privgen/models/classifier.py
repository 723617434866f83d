"""A small classifier of scenes, which judges generated pictures."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from privgen.data.patterns import PATTERNS
from privgen.data.scenes import COLOURS, NOUNS


_GROUPS = 8  # of group normalisation; channels are multiples of it


@dataclass(frozen=True)
class SceneLogits:
    """What a classifier says about a batch of pictures.

    Attributes:
        nouns: (batch, nouns), for each object the logit of the probability that the picture shows it.
        colour: (batch, colours), logits of the colours that the background may have.
        pattern: (batch, patterns + 1), logits of the patterns that the background may have; the last stands for none.
    """

    nouns: Tensor
    colour: Tensor
    pattern: Tensor


class SceneClassifier(ModelMixin, ConfigMixin):
    """Recognises the objects and the background of a scene.

    It is a convolutional network without batch normalisation, so the logits of a picture depend on that picture alone.

    Args:
        channels: of the levels. The first level works at a quarter of the picture's side, each further one at half the
            side of the level before.
        sample_size: side of the pictures in pixels.
        nouns: objects that it recognises.
        colours: that the background may have.
        patterns: that the background may have.
    """

    @register_to_config
    def __init__(
        self,
        channels: tuple[int, ...],
        sample_size: int,
        nouns: tuple[str, ...] = NOUNS,
        colours: tuple[str, ...] = tuple(COLOURS),
        patterns: tuple[str, ...] = PATTERNS,
    ) -> None:
        super().__init__()
        self.sizes = [len(nouns), len(colours), len(patterns) + 1]
        self.stem = nn.Conv2d(12, channels[0], 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(_Block(width) for width in channels)
        self.downs = nn.ModuleList(
            nn.Conv2d(width, wider, 3, stride=2, padding=1) for width, wider in pairwise(channels)
        )
        self.head = nn.Linear(sum(channels) + channels[-1], sum(self.sizes))

    def forward(self, images: Tensor) -> SceneLogits:
        """Classify pictures.

        Args:
            images: (batch, 3, sample_size, sample_size) in [0, 1].
        """
        return SceneLogits(*self.head(self.features(images)).split(self.sizes, 1))

    def features(self, images: Tensor) -> Tensor:
        """What the logits are a linear function of.

        Args:
            images: (batch, 3, sample_size, sample_size) in [0, 1].

        Returns:
            (batch, features).
        """
        h = self.stem(nn.functional.pixel_unshuffle(4 * images - 2, 2))
        means = []
        for i, block in enumerate(self.blocks):
            h = block(h if i == 0 else self.downs[i - 1](h))
            means.append(h.mean((2, 3)))
        # Means show the background, which is everywhere; maxima show objects, wherever they are.
        return torch.cat([*means, h.amax((2, 3))], 1)


class _Block(nn.Module):
    """A residual block of two convolutions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(_GROUPS, width), nn.GroupNorm(_GROUPS, width)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        update = self.conv_1(nn.functional.silu(self.norm_1(h)))
        return h + self.conv_2(nn.functional.silu(self.norm_2(update)))
