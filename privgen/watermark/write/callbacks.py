"""Callbacks that mark images inside any Diffusers pipeline's denoising loop.

    prompt_embeds = encode_with_token(pipe, prompt, token)
    image = pipe(prompt, callback_on_step_end=WatermarkCallback(prompt_embeds, tau=token.tau)).images[0]

Timesteps are on the scale of 1000 training timesteps, whatever the scheduler's own number of them. Callbacks keep no
state of a run: one can be used for many, and several can be combined with `MultiPipelineCallbacks`.
"""

import logging
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import PipelineCallback
from torch import Tensor

from privgen.watermark.token import DEFAULT_TAU, check_tau


logger = logging.getLogger(__name__)


class MarkCallback(PipelineCallback):
    """A callback that acts once in a run, between the steps where the timesteps reach `tau`.

    Subclasses write `mark`.

    Args:
        tau: act as soon as the next timestep is at or below; None acts after the last step.
    """

    def __init__(self, tau: float | None) -> None:
        super().__init__()
        if tau is not None:
            check_tau(tau)
        self.register_to_config(tau=tau)

    def mark(self, pipeline: DiffusionPipeline, tensors: dict[str, Any]) -> None:
        """Change the loop's tensors, those of `tensor_inputs`, in place of the dictionary."""
        raise NotImplementedError

    def callback_fn(
        self, pipeline: DiffusionPipeline, step_index: int, timesteps: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Act, or return `callback_kwargs` as they are; `timesteps` is the one of the step that has ended."""
        if missing := [name for name in self.tensor_inputs if name not in callback_kwargs]:
            raise ValueError(
                f"expected {', '.join(missing)} from {type(pipeline).__name__}, which asks no callback what it needs; "
                "pass callback_on_step_end_tensor_inputs=callback.tensor_inputs to it as well"
            )
        now, later = _timesteps(pipeline, step_index, timesteps)
        if _acts(self.config["tau"], step_index, now, later, type(self).__name__):
            self.mark(pipeline, callback_kwargs)
        return callback_kwargs


class WatermarkCallback(MarkCallback):
    """Swaps the prompt's embeddings for t <= tau: the carrier `token` (arXiv 2503.11945).

    Before that, images are those of the pipeline without the callback, bit for bit. When the very first timestep is at
    or below tau already (few steps, or image to image), that step runs unmarked and a warning says so; give
    `prompt_embeds` to the pipeline itself then.

    Args:
        prompt_embeds: (B, length, dim) for the B images of the batch, or (1, length, dim) for all of them, such as
            `encode_with_token` returns.
        tau: of the token.
        negative: what takes the place of the negative prompt's embeddings in classifier-free guidance, same shape; by
            default these stay. The plain prompt's embeddings guide by the token alone; those with the complementary
            message's token strengthen the mark.

    Raises:
        ValueError: at construction, tau is out of range; in a run, shapes do not fit the pipeline's, `negative` is
            given without guidance, or no timestep is at or below tau.
    """

    def __init__(self, prompt_embeds: Tensor, *, tau: float = DEFAULT_TAU, negative: Tensor | None = None) -> None:
        super().__init__(tau)
        if negative is not None and negative.shape[1:] != prompt_embeds.shape[1:]:
            raise ValueError(f"expected negative to be like {tuple(prompt_embeds.shape)}, got {tuple(negative.shape)}")
        self.prompt_embeds = prompt_embeds
        self.negative = negative

    @property
    def tensor_inputs(self) -> list[str]:
        """What the pipeline has to hand over."""
        return ["latents", "prompt_embeds", *(["negative_prompt_embeds"] if self.negative is not None else [])]

    def mark(self, pipeline: DiffusionPipeline, tensors: dict[str, Any]) -> None:
        """Swap the embeddings."""
        images, old = len(tensors["latents"]), tensors["prompt_embeds"]
        # Stable Diffusion hands over [negative, positive], other pipelines keep them apart.
        copies, rest = divmod(len(old), images)
        if rest or copies == 0:
            raise ValueError(f"expected prompt_embeds for {images} images, the pipeline has {len(old)}")
        guided = bool(getattr(pipeline, "do_classifier_free_guidance", copies == 2))
        joined = guided and copies > 1
        if self.negative is not None and not joined and tensors.get("negative_prompt_embeds") is None:
            raise ValueError("expected classifier-free guidance, because a negative is given; raise guidance_scale")
        parts = list(old.split(images))
        if self.negative is not None and joined:
            parts[0] = _fit(self.negative, parts[0], "negative")
        elif self.negative is not None:
            unguided = tensors["negative_prompt_embeds"]
            tensors["negative_prompt_embeds"] = _fit(self.negative, unguided, "negative")
        first = 1 if joined else 0
        parts[first:] = [_fit(self.prompt_embeds, part, "prompt_embeds") for part in parts[first:]]
        tensors["prompt_embeds"] = torch.cat(parts)


class LatentMarkCallback(MarkCallback):
    """Adds a residual to the latents, once: the carrier `latent`.

    The residual is R(m) of the extractor's pre-training (arXiv 2503.11945).

    Args:
        residual: (B, C, h, w) for the B images of the batch, or (1, C, h, w), in units of scaled latents.
        tau: add it when the next timestep is at or below tau, as it is, whatever the noise level, so that the steps
            that follow can adapt to it and wash some of it out; None adds it after the last step.
        improve: from the latents of the batch and their residuals to better ones, such as a
            `privgen.watermark.write.robust_mark.RobustMarker` makes; only after the last step.

    Raises:
        ValueError: at construction, tau is out of range, or given with improve; in a run, shapes do not fit the
            pipeline's, or no timestep is at or below tau.
    """

    tensor_inputs: ClassVar[list[str]] = ["latents"]

    def __init__(
        self,
        residual: Tensor,
        *,
        tau: float | None = None,
        improve: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(tau)
        if improve is not None and tau is not None:
            raise ValueError(f"expected no tau, because latents are improved after the last step, got {tau:g}")
        self.residual = residual
        self.improve = improve

    def mark(self, pipeline: DiffusionPipeline, tensors: dict[str, Any]) -> None:
        """Add the residual."""
        latents = tensors["latents"]
        residual = _fit(self.residual, latents, "residual")
        if self.improve is not None:
            residual = self.improve(latents, residual).to(latents)
        tensors["latents"] = latents + residual


def _timesteps(pipeline: DiffusionPipeline, step_index: int, timestep: Any) -> tuple[float, list[float]]:
    """The timestep of the step that has ended and those still to come, on the scale of 1000."""
    scale = 1000 / pipeline.scheduler.config.get("num_train_timesteps", 1000)
    schedule, now = [float(t) for t in pipeline.scheduler.timesteps.tolist()], float(timestep)
    # Pipelines may run a part of the schedule: its end (image to image) or its beginning (a base with a refiner).
    steps = getattr(pipeline, "num_timesteps", len(schedule))
    places = (len(schedule) - steps + step_index, step_index, *range(len(schedule)))
    place = next((place for place in places if place < len(schedule) and schedule[place] == now), None)
    if place is None:
        raise ValueError(f"expected a timestep of the scheduler's, got {now:g}; what is to come cannot be told")
    return now * scale, [t * scale for t in schedule[place + 1 : place + steps - step_index]]


def _acts(tau: float | None, step_index: int, now: float, later: list[float], name: str) -> bool:
    """Whether this is the one moment of a run to act in."""
    if tau is None:
        return not later
    if step_index > 0:
        return bool(later) and later[0] <= tau < now
    if now <= tau:
        logger.warning(
            "%s: the first timestep, %g, is at or below tau = %g, so that step ran unmarked%s.",
            name,
            now,
            tau,
            "" if later else ", and there is no other",
        )
        return True
    if min(later, default=now) > tau:
        raise ValueError(
            f"expected a timestep at or below tau = {tau:g}, the lowest is {min(later, default=now):g}: nothing would "
            "be marked; use more steps or a larger tau"
        )
    return later[0] <= tau


def _fit(new: Tensor, old: Tensor, name: str) -> Tensor:
    """`new` in the type and place of `old`, repeated for the batch."""
    if new.shape[1:] != old.shape[1:] or len(new) not in (1, len(old)):
        raise ValueError(f"expected {name} of shape {tuple(old.shape)}, got {tuple(new.shape)}")
    return new.to(old).expand_as(old)
