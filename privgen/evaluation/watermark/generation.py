"""What evaluations of marks generate: images by number, and keys."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from privgen.data.scenes import PREVIEW_SEED, sample_spec
from privgen.diffusion.sampling import BATCH_SIZE, GUIDANCE, Sampling, generate_batches
from privgen.watermark.key import Key, Secret


def as_saved(images: Tensor) -> Tensor:
    """Images as a file with 8 bits a channel keeps them.

    Args:
        images: any shape; values are clipped to [0, 1].
    """
    return images.clamp(0, 1).mul(255).round().div(255)


@dataclass(frozen=True)
class Generation:
    """Images by number: the same number gives the same image, whatever else is generated.

    Attributes:
        pipeline: a text-to-image pipeline.
        seed: of scenes and noise.
        prompts: taken in turn. Without prompts, image i shows the caption of a held-out scene, with one object and
            with two in turn. These captions name no textures, so they are short and leave room for a token.
        sampling: how images are sampled; where it says None, the guidance scale is 3 and the batch size 8.
    """

    pipeline: Any
    seed: int = 0
    prompts: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)

    @property
    def batch_size(self) -> int:
        """Images at a time."""
        return BATCH_SIZE if self.sampling.batch_size is None else self.sampling.batch_size

    @property
    def guidance_scale(self) -> float:
        """Scale of classifier-free guidance."""
        return GUIDANCE if self.sampling.guidance_scale is None else self.sampling.guidance_scale

    def prompt(self, i: int) -> str:
        """The prompt of image i."""
        if self.prompts:
            return self.prompts[i % len(self.prompts)]
        return sample_spec(self._first + i, count=1 + i % 2, textured=False).caption

    def images(self, numbers: Sequence[int]) -> Tensor:
        """Generate one batch.

        Args:
            numbers: of the images.

        Returns:
            (B, 3, H, W) in [0, 1], rounded to 8 bits, on the CPU.
        """
        prompts = [self.prompt(i) for i in numbers]
        seeds = [(self._first + i) % 2**63 for i in numbers]
        sampling = replace(self.sampling, batch_size=len(numbers))
        return as_saved(next(generate_batches(self.pipeline, prompts, seeds, sampling)))

    @property
    def _first(self) -> int:
        """The number of scene 0, far from those of training; seeds lie a million scenes apart."""
        return PREVIEW_SEED + 1_000_000 * self.seed


def draw_keys(n: int, generator: torch.Generator, name: str) -> tuple[Key, ...]:
    """Draw keys for a measurement, which you can repeat; for keys to use, call `Key.new`.

    Args:
        n: how many.
        generator: draws the secrets, on the CPU.
        name: of the keys, to which their number is added.
    """
    secrets = torch.randint(256, (n, 32), generator=generator).tolist()
    return tuple(Key(f"{name}-{i}", Secret(bytes(secret))) for i, secret in enumerate(secrets))
