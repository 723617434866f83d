"""Generate images in batches, each image from its own seed."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from privgen.errors import UsageError
from privgen.io.progress import Bar


STEPS = 25
GUIDANCE = 3.0
BATCH_SIZE = 8


@dataclass(frozen=True)
class Sampling:
    """How images are sampled.

    Attributes:
        steps: number of denoising steps, at least 1.
        guidance_scale: scale of classifier-free guidance; None is 3 for embedded models, and the default of their
            pipeline for others.
        negative_prompt: text that describes what the images must not show.
        batch_size: number of images at a time; None is 8 for embedded models and 1 for others.
    """

    steps: int = STEPS
    guidance_scale: float | None = None
    negative_prompt: str | None = None
    batch_size: int | None = None


def generate_batches(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    **arguments: Any,
) -> Iterator[Tensor]:
    """Generate images, one batch at a time.

    Args:
        pipeline: a text-to-image pipeline. It is not changed.
        prompts: one for each image.
        seeds: one for each image. An image depends on its own seed and prompt, not on its batch.
        sampling: how to sample. Here a guidance scale of None is 3, and a batch size of None is 8.
        **arguments: further arguments of the pipeline's call, the same for all batches.

    Yields:
        (batch, 3, height, width) float32 in [0, 1], on the CPU.

    Raises:
        ValueError: there are not as many seeds as prompts, or the batch size is below 1.
        UsageError: the pipeline does not generate images from a prompt alone.
    """
    check_text_to_image(pipeline)
    sampling = sampling or Sampling()
    size = BATCH_SIZE if sampling.batch_size is None else sampling.batch_size
    scale = GUIDANCE if sampling.guidance_scale is None else sampling.guidance_scale
    if len(prompts) != len(seeds) or size < 1:
        raise ValueError(
            f"expected one seed a prompt and at least one image a batch, got {len(prompts)}, {len(seeds)} and {size}"
        )
    for first in range(0, len(prompts), size):
        chosen = slice(first, first + size)
        texts = list(prompts[chosen])
        negative = sampling.negative_prompt
        more = {} if negative is None else {"negative_prompt": [negative] * len(texts)}
        with silent(pipeline):
            output = pipeline(
                texts,
                num_inference_steps=sampling.steps,
                guidance_scale=scale,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[chosen]],
                output_type="pt",
                **more,
                **arguments,
            )
        yield output.images.float().cpu().clamp(0, 1)


def generate(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    seeds: Sequence[int],
    sampling: Sampling | None = None,
    *,
    progress: str = "",
) -> Tensor:
    """Generate images, and return them all as one tensor.

    Args:
        pipeline: a text-to-image pipeline. It is not changed.
        prompts: one for each image, at least one.
        seeds: one for each image.
        sampling: see `generate_batches`.
        progress: label of a progress bar on standard error; an empty text shows no bar.

    Returns:
        (images, 3, height, width) float32 in [0, 1], on the CPU.
    """
    batches = []
    with Bar(total=len(prompts), desc=progress, unit="image", disable=not progress) as bar:
        for batch in generate_batches(pipeline, prompts, seeds, sampling):
            batches.append(batch)
            bar.update(len(batch))
    return torch.cat(batches)


def check_text_to_image(pipeline: DiffusionPipeline) -> None:
    """Check that a pipeline generates images from a prompt alone.

    Raises:
        UsageError: it does not.
    """
    parameters = inspect.signature(pipeline.__call__).parameters
    required = [name for name, p in parameters.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    if "prompt" not in parameters or "guidance_scale" not in parameters or any(name != "prompt" for name in required):
        raise UsageError(
            f"A {type(pipeline).__name__} does not generate images from a prompt; name a text-to-image model."
        )


@contextmanager
def silent(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Hide the pipeline's own progress bar, of which there is one for each batch."""
    before = getattr(pipeline, "_progress_bar_config", None)
    pipeline.set_progress_bar_config(**(before or {}) | {"disable": True})
    try:
        yield
    finally:
        if before is None:
            del pipeline._progress_bar_config
        else:
            pipeline._progress_bar_config = before
