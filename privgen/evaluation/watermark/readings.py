"""What an extractor reads from images as they are saved, clean and attacked, and what they are generated from."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privgen.attacks import Attack, get_attack
from privgen.data.scenes import PREVIEW_SEED, sample_spec
from privgen.diffusion.sampling import BATCH_SIZE, GUIDANCE, STEPS, Sampling, generate_batches
from privgen.watermark.key import Key, Secret
from privgen.watermark.protocols import ExtractorLike
from privgen.watermark.read.bits import weigh_bits
from privgen.watermark.read.logits import read_logits


Bits: TypeAlias = NDArray[np.uint8]
"""(images, n_bits) of 0 and 1."""

Weighed: TypeAlias = NDArray[np.int8]
"""(images, n_bits), as `privgen.watermark.read.bits.weigh_bits` returns them."""

Readings: TypeAlias = Mapping[str, Weighed]
"""What was read, by attack; `CLEAN` is without one."""

CLEAN = "clean"

RATES = {"1e-3": 1e-3, "1e-6": 1e-6}
"""False-positive rates that detections are counted at, by the name that results call them."""

ATTACKS: dict[str, Attack] = {
    "jpeg_75": get_attack("jpeg", strength=75),
    "blur_1": get_attack("blur", strength=1, reference=None),
    "brightness_1_5": get_attack("brightness", strength=1.5),
}
"""Attacks by the name that results call them; the radius of the blur is in the image's own pixels."""


def as_saved(images: Tensor) -> Tensor:
    """Images as a file with 8 bits a channel keeps them.

    Args:
        images: any shape, clipped to [0, 1].
    """
    return images.clamp(0, 1).mul(255).round().div(255)


def read(images: Iterable[Tensor], extractor: ExtractorLike) -> Readings:
    """Read images as they are, and as each attack saves them.

    Args:
        images: each (3, H, W) in [0, 1], of any size; (B, 3, H, W) is B of them.
        extractor: images to logits.

    Returns:
        For `CLEAN` and each of `ATTACKS` an array (images, n_bits), see `Weighed`.
    """
    pixels = list(images)
    readings = {CLEAN: _weighed(pixels, extractor)}
    for name, attack in ATTACKS.items():
        readings[name] = _weighed([as_saved(attack(image[None])[0]) for image in pixels], extractor)
    return readings


def joined(parts: Sequence[Readings]) -> Readings:
    """The readings of several batches as one."""
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def draw_keys(n: int, generator: torch.Generator, name: str) -> tuple[Key, ...]:
    """Keys for a measurement, which is repeatable; keys for use come from `Key.new`.

    Args:
        n: how many.
        generator: draws the secrets, on the CPU.
        name: what to call them, followed by a number.
    """
    secrets = torch.randint(256, (n, 32), generator=generator).tolist()
    return tuple(Key(f"{name}-{i}", Secret(bytes(secret))) for i, secret in enumerate(secrets))


@dataclass(frozen=True)
class Generation:
    """Images by number: the same number is the same image, whatever else is generated.

    Attributes:
        pipeline: a `StableDiffusionWatermarkPipeline`.
        seed: of scenes and noise.
        prompts: taken in turn; when empty, image i shows the caption of a held-out scene, one object and two in turn.
            These captions name no textures, so that they are short and leave room for a token.
        batch_size: images at a time.
        steps: denoising steps.
        guidance_scale: scale of classifier-free guidance.
    """

    pipeline: Any
    seed: int = 0
    prompts: tuple[str, ...] = ()
    batch_size: int = BATCH_SIZE
    steps: int = STEPS
    guidance_scale: float = GUIDANCE

    def prompt(self, i: int) -> str:
        """What image i shows."""
        if self.prompts:
            return self.prompts[i % len(self.prompts)]
        return sample_spec(self._first + i, count=1 + i % 2, textured=False).caption

    def images(self, numbers: Sequence[int], **mark: Any) -> Tensor:
        """Generate one batch.

        Args:
            numbers: of the images, at most `batch_size`.
            **mark: what the pipeline marks with; plain images without.

        Returns:
            (B, 3, H, W) in [0, 1], as they are saved, on the CPU.
        """
        prompts = [self.prompt(i) for i in numbers]
        seeds = [(self._first + i) % 2**63 for i in numbers]
        sampling = Sampling(self.steps, self.guidance_scale, batch_size=len(numbers))
        return as_saved(next(generate_batches(self.pipeline, prompts, seeds, sampling, **mark)))

    @property
    def _first(self) -> int:
        return PREVIEW_SEED + 1_000_000 * self.seed


def _weighed(images: Sequence[Tensor], extractor: ExtractorLike) -> Weighed:
    return weigh_bits(read_logits(images, extractor))
