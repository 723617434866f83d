"""A small classifier of scenes, by which generated pictures are judged."""

from dataclasses import dataclass
from itertools import pairwise

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn

from privgen.data.patterns import PATTERNS
from privgen.data.scenes import COLOURS, NOUNS


@dataclass(frozen=True)
class SceneLogits:
    """What a classifier says of a batch of pictures.

    Attributes:
        nouns: (batch, nouns), a logit for each object being there; several may be.
        colour: (batch, colours), logits of the background's one colour.
        pattern: (batch, patterns + 1), logits of the background's one pattern; the last stands for none.
    """

    nouns: Tensor
    colour: Tensor
    pattern: Tensor


class SceneClassifier(ModelMixin, ConfigMixin):
    """A convolutional network from a picture of a scene to its objects and its background.

    It has no batch normalisation, so a picture's logits depend on that picture alone.

    Args:
        nouns: objects it tells apart.
        colours: colours of the background.
        patterns: patterns of the background.
        channels: of the levels; the first works at a quarter of the picture's side, each other at half of the former.
        sample_size: side of the pictures in pixels.
    """

    @register_to_config
    def __init__(
        self,
        nouns: tuple[str, ...] = NOUNS,
        colours: tuple[str, ...] = tuple(COLOURS),
        patterns: tuple[str, ...] = PATTERNS,
        channels: tuple[int, ...] = (48, 96, 160),
        sample_size: int = 128,
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
        h = self.stem(nn.functional.pixel_unshuffle(4 * images - 2, 2))
        means = []
        for i, block in enumerate(self.blocks):
            h = block(h if i == 0 else self.downs[i - 1](h))
            means.append(h.mean((2, 3)))
        # Means see the background, which is everywhere; maxima see objects, wherever they are.
        logits = self.head(torch.cat([*means, h.amax((2, 3))], 1))
        return SceneLogits(*logits.split(self.sizes, 1))


class _Block(nn.Module):
    """Two convolutions and a way around them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.GroupNorm(8, width), nn.GroupNorm(8, width)
        self.conv_1 = nn.Conv2d(width, width, 3, padding=1)
        self.conv_2 = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        update = self.conv_1(nn.functional.silu(self.norm_1(h)))
        return h + self.conv_2(nn.functional.silu(self.norm_2(update)))
