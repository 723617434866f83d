import logging

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGPipeline,
)
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback, SDCFGCutoffCallback

from privgen.pipelines.watermark_callback import LatentMarkCallback, WatermarkCallback
from privgen.watermark.token import encode_with_token


PROMPT = "a cat"


class Record(PipelineCallback):
    """Keeps what the loop hands over after each step."""

    tensor_inputs = ("latents", "prompt_embeds")

    def __init__(self):
        super().__init__()
        self.steps = []

    def callback_fn(self, pipeline, step_index, timesteps, callback_kwargs):
        self.steps.append((float(timesteps), {key: value.clone() for key, value in callback_kwargs.items()}))
        return callback_kwargs

    @property
    def timesteps(self):
        return [timestep for timestep, _ in self.steps]

    @property
    def latents(self):
        return [tensors["latents"] for _, tensors in self.steps]


def run(pipe, *callbacks, prompt=PROMPT, steps=5, **options):
    """Final latents, and the record of the steps."""
    record = Record()
    options.setdefault("generator", torch.Generator().manual_seed(0))
    chain = MultiPipelineCallbacks([*callbacks, record])
    chain = type("Chain", (MultiPipelineCallbacks,), {"tensor_inputs": ["latents", "prompt_embeds"]})(chain.callbacks)
    if any(getattr(callback, "negative", None) is not None for callback in callbacks):
        chain = MultiPipelineCallbacks([*callbacks, record])
    images = pipe(
        prompt, num_inference_steps=steps, callback_on_step_end=chain, output_type="latent", **options
    ).images
    return images, record


def vectors(seed=0, *shape):
    return 3 * torch.randn(shape or (2, 32), generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def marked_embeds(pipe, prompt=PROMPT, seed=0):
    return encode_with_token(pipe, prompt, vectors(seed))
