"""Pictures by the hundred: in batches, each from a seed of its own."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm


STEPS = 25
GUIDANCE = 3.0
BATCH_SIZE = 8


@dataclass(frozen=True)
class Sampling:
    """How images are sampled.

    Attributes:
        steps: denoising steps, at least 1.
        guidance_scale: of classifier-free guidance; None is 3 for embedded models, and for others what their pipeline
            uses by default.
        negative_prompt: what the images shall not show.
        batch_size: images at a time; None is 8 for embedded models and 1 for others.
    """

    steps: int = STEPS
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    batch_size: int | None = None


def generate_batches(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    batch_size: int = BATCH_SIZE,
    steps: int = STEPS,
    guidance_scale: float = GUIDANCE,
    **arguments: Any,
) -> Iterator[Tensor]:
    """Generate pictures a batch at a time.

    Args:
        pipeline: a text-to-image pipeline; it is left as it was.
        prompts: one a picture.
        seeds: one a picture; a picture depends on its own seed and prompt, not on its batch.
        batch_size: pictures at a time.
        steps: denoising steps.
        guidance_scale: scale of classifier-free guidance.
        **arguments: more for the pipeline's call, the same for all batches.

    Yields:
        (batch, 3, height, width) float32 in [0, 1], on the CPU.

    Raises:
        ValueError: not as many seeds as prompts, or an empty batch.
    """
    if len(prompts) != len(seeds) or batch_size < 1:
        raise ValueError(
            f"expected one seed a prompt and at least one picture a batch, "
            f"got {len(prompts)}, {len(seeds)} and {batch_size}"
        )
    for first in range(0, len(prompts), batch_size):
        chosen = slice(first, first + batch_size)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds[chosen]]
        with silent(pipeline):
            output = pipeline(
                list(prompts[chosen]),
                num_inference_steps=steps,
                guidance_scale=guidance_scale,
                generator=generators,
                output_type="pt",
                **arguments,
            )
        yield output.images.float().cpu().clamp(0, 1)


def generate(
    pipeline: DiffusionPipeline, prompts: Sequence[str], seeds: Sequence[int], *, progress: str = "", **options: Any
) -> Tensor:
    """Generate pictures.

    Args:
        pipeline: a text-to-image pipeline; it is left as it was.
        prompts: one a picture, at least one.
        seeds: one a picture.
        progress: what the progress bar on standard error says; without it there is none.
        **options: see `generate_batches`.

    Returns:
        (pictures, 3, height, width) float32 in [0, 1], on the CPU.
    """
    batches = []
    with tqdm(total=len(prompts), desc=progress, unit="image", disable=not progress) as bar:
        for batch in generate_batches(pipeline, prompts, seeds, **options):
            batches.append(batch)
            bar.update(len(batch))
    return torch.cat(batches)


@contextmanager
def silent(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Without the pipeline's own progress bar, one a batch."""
    before = getattr(pipeline, "_progress_bar_config", None)
    pipeline.set_progress_bar_config(**(before or {}) | {"disable": True})
    try:
        yield
    finally:
        if before is None:
            del pipeline._progress_bar_config
        else:
            pipeline._progress_bar_config = before
