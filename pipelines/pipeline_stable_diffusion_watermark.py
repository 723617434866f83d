"""Stable Diffusion whose images carry a key's mark."""

import copy
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import StableDiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from torch import Tensor

from privgen.errors import UsageError
from privgen.pipelines.watermark_callback import LatentMarkCallback, WatermarkCallback
from privgen.watermark.key import Key
from privgen.watermark.protocols import ExtractorLike, LatentMapperLike, TokenMapperLike, config_value, key_bits
from privgen.watermark.token import DEFAULT_TAU, Token, check_tau, encode_with_token, token_embeddings
from privgen.watermark.write.marker import CARRIERS, Carrier
from privgen.watermark.write.robust_mark import RobustMarker


_PLAIN = inspect.signature(StableDiffusionPipeline.__call__)
_PLAIN_EXTRAS = frozenset({"callback", "callback_steps"})


@dataclass
class StableDiffusionWatermarkPipelineOutput(BaseOutput):
    """Images and whose they are.

    Attributes:
        images: as Stable Diffusion returns them: B Pillow images, or an array or tensor for other output types.
        nsfw_content_detected: for each image whether the safety checker found it unsafe; None without a checker.
        key_ids: for each image the public id of its key; None when nothing was marked. (A field `keys` would hide
            the method of that name that this class inherits from dict.)
        carrier: what the mark was written with; None when nothing was marked.
    """

    images: list[PIL.Image.Image] | NDArray[np.generic] | Tensor
    nsfw_content_detected: list[bool] | None
    key_ids: list[str] | None = None
    carrier: Carrier | None = None


@dataclass(frozen=True)
class _Mark:
    """What one call marks with: networks and numbers still as the caller gave them."""

    keys: tuple[Key, ...]
    token: Token | None
    carrier: Carrier
    tau: float | None
    token_mapper: TokenMapperLike | None
    latent_mapper: LatentMapperLike | None
    extractor: ExtractorLike | None
    robust_steps: int


def _with_plain_signature(call: Callable[..., Any]) -> Callable[..., Any]:
    """Show the installed Stable Diffusion's parameters before the function's own keywords."""
    own = [p for p in inspect.signature(call).parameters.values() if p.kind is p.KEYWORD_ONLY]
    plain = [p for p in _PLAIN.parameters.values() if p.kind is not p.VAR_KEYWORD]
    call.__signature__ = inspect.Signature([*plain, *own])  # type: ignore[attr-defined]
    return call


class StableDiffusionWatermarkPipeline(StableDiffusionPipeline):
    """Stable Diffusion 1 or 2, or mini, with a mark (arXiv 2503.11945).

    It has the components of `StableDiffusionPipeline` and is saved as one, so that Diffusers alone can load it. The
    mappers are not components: set them as attributes, or pass them at each call.

        pipe = load_pipeline("mini", pipeline_class=StableDiffusionWatermarkPipeline)
        pipe.token_mapper = load_extra("token_mapper", "mini")
        output = pipe("a cat on a blue background", key=load_key("alice"))
        output.images[0], output.key_ids[0]

    Attributes:
        token_mapper: message bits to token embedding, for the carrier `token`.
        latent_mapper: message bits to latent residual, for the carrier `latent`.
        extractor: what will read the marks, for `robust_steps`.
    """

    token_mapper: TokenMapperLike | None = None
    latent_mapper: LatentMapperLike | None = None
    extractor: ExtractorLike | None = None

    @_with_plain_signature
    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        key: Key | None = None,
        keys: Sequence[Key] | None = None,
        carrier: Carrier = "token",
        tau: float | None = None,
        token: Token | None = None,
        token_mapper: TokenMapperLike | None = None,
        latent_mapper: LatentMapperLike | None = None,
        extractor: ExtractorLike | None = None,
        robust_steps: int = 0,
        **kwargs: Any,
    ) -> "StableDiffusionWatermarkPipelineOutput | tuple[Any, ...]":
        """Generate images; without key and token bit for bit those of `StableDiffusionPipeline`.

        Args:
            *args: what `StableDiffusionPipeline` takes.
            key: whose mark all images carry.
            keys: whose mark each image carries, one for each of prompts times `num_images_per_prompt`, in that order.
            carrier: "token" appends a token to the prompt late in denoising; "latent" adds a residual to the latents.
            tau: the mark acts on timesteps t <= tau, on the scale of 1000. By default the token's own, or what its
                mapper was trained for; the carrier latent adds its residual after the last step by default.
            token: the token to use, instead of the mapper's for a key; its own key need not be given.
            token_mapper: instead of the attribute.
            latent_mapper: instead of the attribute.
            extractor: instead of the attribute.
            robust_steps: rounds in which the residual of the carrier latent is fitted to its image, so that it survives
                regeneration; see `privgen.watermark.write.robust_mark`.
            **kwargs: what `StableDiffusionPipeline` takes by name.

        Returns:
            The output, or with `return_dict=False` the tuple of its four fields.

        Raises:
            TypeError: an argument that neither this class nor Stable Diffusion knows; the latter ignores them.
            UsageError: keys, token, carrier and mappers that do not go together, or no room in a prompt.
            ValueError: values out of range, shapes that do not fit, or no timestep at or below tau.
        """
        call = _bind(self, args, kwargs)
        mark = _Mark(
            keys=_given_keys(key, keys, token),
            token=token,
            carrier=carrier,
            tau=tau,
            token_mapper=self.token_mapper if token_mapper is None else token_mapper,
            latent_mapper=self.latent_mapper if latent_mapper is None else latent_mapper,
            extractor=self.extractor if extractor is None else extractor,
            robust_steps=robust_steps,
        )
        return_dict, call["return_dict"] = call["return_dict"], False
        ids = None
        if mark.keys or token is not None:
            ids, call = self._marked_call(call, mark)
        images, unsafe = super().__call__(**call)
        output = (images, unsafe, ids, carrier if ids is not None else None)
        return StableDiffusionWatermarkPipelineOutput(*output) if return_dict else output

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save as a `StableDiffusionPipeline`, without the mappers."""
        needed = {"requires_safety_checker": self.config.requires_safety_checker}
        StableDiffusionPipeline(**self.components, **needed).save_pretrained(save_directory, **kwargs)

    def _marked_call(self, call: dict[str, Any], mark: _Mark) -> tuple[list[str], dict[str, Any]]:
        """Key ids of all images, and the plain pipeline's arguments that mark them."""
        if mark.carrier not in CARRIERS:
            raise UsageError(f"expected the carrier {' or '.join(CARRIERS)}, got {mark.carrier!r}")
        if mark.tau is not None:
            check_tau(mark.tau)
        images = self._count_images(call)
        if len(mark.keys) not in (0, 1, images):
            raise UsageError(f"expected one key for each of {images} images, got {len(mark.keys)}")
        if mark.robust_steps and mark.carrier == "token":
            raise UsageError("Marks that text writes are not refined; use the carrier latent.")
        change = self._mark_with_token if mark.carrier == "token" else self._mark_with_latents
        ids = [key.key_id for key in mark.keys] or [mark.token.key_id if mark.token is not None else ""]
        return ids * (images // len(ids)), {**call, **change(call, mark, images)}

    def _count_images(self, call: dict[str, Any]) -> int:
        checked = ("prompt", "callback_steps", "negative_prompt", "prompt_embeds", "negative_prompt_embeds")
        self.check_inputs(height=call["height"] or 8, width=call["width"] or 8, **{k: call.get(k) for k in checked})
        prompts = [call["prompt"]] if isinstance(call["prompt"], str) else call["prompt"]
        return len(call["prompt_embeds"] if prompts is None else prompts) * call["num_images_per_prompt"]

    def _mark_with_token(self, call: dict[str, Any], mark: _Mark, images: int) -> dict[str, Any]:
        if call["prompt"] is None:
            raise UsageError(
                "The carrier token needs the prompt itself, not prompt_embeds; or use the carrier latent."
            )
        embedding, opposite, trained_tau = _embedding(mark)
        tau = trained_tau if mark.tau is None else mark.tau
        prompts = _repeated(call["prompt"], images)
        marked = encode_with_token(self, prompts, embedding, clip_skip=call["clip_skip"])
        negative, negative_embeds = call["negative_prompt"], call["negative_prompt_embeds"]
        against = None
        if opposite is not None and call["guidance_scale"] > 1:
            if negative_embeds is not None:
                raise UsageError(
                    "This token changes the negative prompt too: give that as negative_prompt, not as embeddings."
                )
            against = encode_with_token(self, _repeated(negative or "", images), opposite, clip_skip=call["clip_skip"])
        if self._first_timestep(call) > tau:
            return _also(call, WatermarkCallback(marked, tau=tau, negative=against))
        # The token acts from the first step on: no callback could come in time.
        if negative_embeds is not None:
            negative_embeds = negative_embeds.repeat_interleave(images // len(negative_embeds), 0)
        if against is not None:
            negative, negative_embeds = None, against
        return {
            "prompt": None,
            "prompt_embeds": marked,
            "negative_prompt": None if negative is None else _repeated(negative, images),
            "negative_prompt_embeds": negative_embeds,
            "num_images_per_prompt": 1,
        }

    def _mark_with_latents(self, call: dict[str, Any], mark: _Mark, images: int) -> dict[str, Any]:
        if mark.token is not None:
            raise UsageError("A token was given, and the carrier is latent; give a key instead, or the carrier token.")
        if mark.latent_mapper is None:
            raise _no_mapper("latent")
        size = self.unet.config.sample_size
        default = (size, size) if isinstance(size, int) else tuple(size)
        asked = (call["height"], call["width"])
        height, width = (side // self.vae_scale_factor for side in asked) if all(asked) else default
        bits = key_bits(mark.keys, mark.latent_mapper)
        residual = mark.latent_mapper(bits, height=height, width=width)
        shape = (self.unet.config.in_channels, height, width)
        if tuple(residual.shape[1:]) != shape:
            raise ValueError(
                f"expected a residual of shape {shape}, got {tuple(residual.shape[1:])}: the mapper is another model's"
            )
        robust_steps = partial(self._refiner(mark), bits=bits) if mark.robust_steps else None
        return _also(call, LatentMarkCallback(residual, tau=mark.tau, robust_steps=robust_steps))

    def _refiner(self, mark: _Mark) -> RobustMarker:
        if mark.tau is not None:
            raise UsageError("Only a mark that is added after the last step can be refined; leave tau out.")
        if mark.extractor is None:
            raise UsageError("A mark is refined for its extractor; pass extractor=, or set the attribute.")
        return RobustMarker(self, mark.extractor, mark.robust_steps)

    def _first_timestep(self, call: Mapping[str, Any]) -> float:
        """Where denoising begins, on the scale of 1000."""
        scheduler = copy.deepcopy(self.scheduler)
        steps = (call["num_inference_steps"], "cpu", call["timesteps"], call["sigmas"])
        timesteps, _ = retrieve_timesteps(scheduler, *steps)
        return float(timesteps[0]) * 1000 / scheduler.config.get("num_train_timesteps", 1000)


class _UserCallback(PipelineCallback):
    """The caller's own callback, which may be a plain function and may return only what it changed."""

    def __init__(self, function: Any, tensor_inputs: Sequence[str]) -> None:
        super().__init__()
        self.function = function
        self.inputs = list(tensor_inputs)

    @property
    def tensor_inputs(self) -> list[str]:
        return self.inputs

    def callback_fn(
        self, pipeline: Any, step_index: int, timesteps: Any, callback_kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        asked = {name: callback_kwargs[name] for name in self.inputs}
        return {**callback_kwargs, **self.function(pipeline, step_index, timesteps, asked)}


def _also(call: Mapping[str, Any], callback: PipelineCallback) -> dict[str, Any]:
    """The arguments that call `callback` after the caller's own one."""
    own = call["callback_on_step_end"]
    if own is None:
        return {"callback_on_step_end": callback}
    known = isinstance(own, PipelineCallback | MultiPipelineCallbacks)
    inputs = own.tensor_inputs if known else call["callback_on_step_end_tensor_inputs"]
    return {"callback_on_step_end": MultiPipelineCallbacks([_UserCallback(own, inputs), callback])}


def _bind(pipe: StableDiffusionPipeline, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The plain pipeline's arguments by name, defaults included."""
    bound = _PLAIN.bind(pipe, *args, **kwargs)
    bound.apply_defaults()
    call = dict(bound.arguments)
    call.pop("self")
    unnamed = call.pop("kwargs", {})
    if unknown := sorted(set(unnamed) - _PLAIN_EXTRAS):
        raise TypeError(f"unexpected arguments: {', '.join(unknown)}")
    return {**call, **unnamed}


def _given_keys(key: Key | None, keys: Sequence[Key] | None, token: Token | None) -> tuple[Key, ...]:
    if key is not None and keys is not None:
        raise UsageError("Give either key, for all images, or keys, one for each.")
    given = tuple(keys) if keys is not None else () if key is None else (key,)
    if keys is not None and not given:
        raise UsageError("keys is empty; give one for each image, or leave it out.")
    if wrong := [item for item in given if not isinstance(item, Key)]:
        raise UsageError(f"expected a Key, got {type(wrong[0]).__name__}; load_key reads one from its file")
    if token is not None and any(item.key_id != token.key_id for item in given):
        raise UsageError(f"The token belongs to key {token.key_id}, not to the one given; leave the key out.")
    return given


def _embedding(mark: _Mark) -> tuple[Tensor, Tensor | None, float]:
    """Embeddings for the prompts, for the negative prompts, and the tau that they were made for."""
    if mark.token is not None:
        return mark.token.embedding, mark.token.negative, mark.token.tau
    if mark.token_mapper is None:
        raise _no_mapper("token")
    embedding, opposite = token_embeddings(mark.token_mapper, key_bits(mark.keys, mark.token_mapper))
    return embedding, opposite, config_value(mark.token_mapper, "tau", DEFAULT_TAU)


def _no_mapper(carrier: Carrier) -> UsageError:
    name = f"{carrier}_mapper"
    token = ", or give a token" if carrier == "token" else ""
    return UsageError(f'The carrier {carrier} needs a mapper; set {name} = load_extra("{name}", MODEL){token}.')


def _repeated(prompts: str | list[str], images: int) -> list[str]:
    """One prompt for each image, in the order in which Stable Diffusion makes them."""
    texts = [prompts] if isinstance(prompts, str) else prompts
    return [text for text in texts for _ in range(images // len(texts))]
