"""Callbacks that mark images inside any Diffusers pipeline's denoising loop.

    prompt_embeds = encode_with_token(pipe, prompt, token)
    image = pipe(prompt, callback_on_step_end=WatermarkCallback(prompt_embeds, tau=token.tau)).images[0]

Timesteps are on the scale of 1000 training timesteps, also if the scheduler has another number of them. Callbacks keep
no state, so you can use one for many runs, and combine several with `MultiPipelineCallbacks`.
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
    """A callback that acts once in a run: after the step that brings the timestep to `tau` or below.

    Subclasses implement `mark`.

    Args:
        tau: act as soon as the next timestep is `tau` or below; None acts after the last step.
    """

    def __init__(self, tau: float | None) -> None:
        super().__init__()
        if tau is not None:
            check_tau(tau)
        self.register_to_config(tau=tau)

    def mark(self, pipeline: DiffusionPipeline, tensors: dict[str, Any]) -> None:
        """Change `tensors`, the tensors of the loop that `tensor_inputs` names. Change the dictionary itself."""
        raise NotImplementedError

    def callback_fn(
        self, pipeline: DiffusionPipeline, step_index: int, timesteps: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        """Call `mark` if it is time to. `timesteps` is the timestep of the step that has just ended."""
        if missing := [name for name in self.tensor_inputs if name not in callback_kwargs]:
            raise ValueError(
                f"expected {', '.join(missing)} from {type(pipeline).__name__}, which ignores callback.tensor_inputs; "
                "pass callback_on_step_end_tensor_inputs=callback.tensor_inputs to it as well"
            )
        now, later = _timesteps(pipeline, step_index, timesteps)
        if _acts(self.config["tau"], step_index, now, later, type(self).__name__):
            self.mark(pipeline, callback_kwargs)
        return callback_kwargs


class WatermarkCallback(MarkCallback):
    """Replaces the prompt's embeddings for t <= tau: the carrier `token` (arXiv 2503.11945).

    Until then the run is bit for bit the same as without the callback. If the first timestep is already at or below
    tau (few steps, or image to image), the first step runs unmarked and a warning is logged. In that case pass
    `prompt_embeds` to the pipeline itself.

    Args:
        prompt_embeds: (B, length, dim) for the B images of the batch, or (1, length, dim) for all of them, for example
            from `encode_with_token`.
        tau: of the token.
        negative: new embeddings of the negative prompt in classifier-free guidance, same shape; None leaves them as
            they are. With the embeddings of the plain prompt, guidance follows the token alone. With the embeddings of
            the complementary message's token, the mark gets stronger.

    Raises:
        ValueError: at construction, tau is out of range; in a run, the shapes do not fit the pipeline's, `negative` is
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
        """Names of the tensors that the pipeline passes to the callback."""
        return ["latents", "prompt_embeds", *(["negative_prompt_embeds"] if self.negative is not None else [])]

    def mark(self, pipeline: DiffusionPipeline, tensors: dict[str, Any]) -> None:
        """Replace the embeddings."""
        images, old = len(tensors["latents"]), tensors["prompt_embeds"]
        # Stable Diffusion passes [negative, positive] in one tensor; other pipelines pass two.
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
        residual: (B, C, h, w) for the B images of the batch, or (1, C, h, w) for all, in units of scaled latents.
        tau: add the residual as soon as the next timestep is at or below tau. It is not scaled to the noise level. The
            steps that follow adapt the image to it, and remove some of it. None adds it after the last step.
        improve: function of the batch's latents and their residuals that returns better residuals, for example a
            `privgen.watermark.write.robust_mark.RobustMarker`. It needs tau None.

    Raises:
        ValueError: at construction, tau is out of range, or given together with improve; in a run, the shapes do not
            fit the pipeline's, or no timestep is at or below tau.
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
    """Return the timestep of the step that has ended, and those that follow, on the scale of 1000."""
    scale = 1000 / pipeline.scheduler.config.get("num_train_timesteps", 1000)
    schedule, now = [float(t) for t in pipeline.scheduler.timesteps.tolist()], float(timestep)
    # Some pipelines run only a part of the schedule: its end (image to image) or its beginning (base and refiner).
    steps = getattr(pipeline, "num_timesteps", len(schedule))
    places = (len(schedule) - steps + step_index, step_index, *range(len(schedule)))
    place = next((place for place in places if place < len(schedule) and schedule[place] == now), None)
    if place is None:
        raise ValueError(
            f"expected one of the scheduler's timesteps, got {now:g}, so the timesteps that follow are unknown"
        )
    return now * scale, [t * scale for t in schedule[place + 1 : place + steps - step_index]]


def _acts(tau: float | None, step_index: int, now: float, later: list[float], name: str) -> bool:
    """Return whether the callback acts after this step."""
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
    """Return `new` with the dtype and device of `old`, repeated for the batch."""
    if new.shape[1:] != old.shape[1:] or len(new) not in (1, len(old)):
        raise ValueError(f"expected {name} of shape {tuple(old.shape)}, got {tuple(new.shape)}")
    return new.to(old).expand_as(old)
