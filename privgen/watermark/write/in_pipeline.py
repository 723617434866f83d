"""Mark the images that a Diffusers pipeline generates: the arguments of its call, or the latents that it decodes."""

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.callbacks import MultiPipelineCallbacks, PipelineCallback
from torch import Tensor

from privgen.diffusion.latents import scale, shift
from privgen.errors import UsageError
from privgen.models.family import Canvas, family_of
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.protocols import ExtractorLike, LatentMapperLike, TokenMapperLike, config_value, key_bits
from privgen.watermark.tile.embed import mark_image
from privgen.watermark.tile.payload import pattern_with
from privgen.watermark.token import DEFAULT_TAU, Token, encode_with_token, token_embeddings
from privgen.watermark.write.callbacks import LatentMarkCallback, WatermarkCallback
from privgen.watermark.write.mark_spec import Carrier, MarkSpec, NetworkCarrier, with_token_carrier
from privgen.watermark.write.replacing import replaced_call, replaced_decode
from privgen.watermark.write.robust_mark import RobustMarker


@dataclass(frozen=True, eq=False)
class CallMark:
    """What one call of a pipeline marks with.

    Attributes:
        keys: one for all images, or one for each; empty if a token is given.
        spec: how the mark is written; its carrier is named.
        token: used instead of the mapper's for a key.
        token_mapper: message bits to token embedding, for the carrier "token".
        latent_mapper: message bits to latent residual, for the carrier "latent".
        extractor: reads the marks; needed for robust steps.
    """

    keys: tuple[Key, ...]
    spec: MarkSpec
    token: Token | None = None
    token_mapper: TokenMapperLike | None = None
    latent_mapper: LatentMapperLike | None = None
    extractor: ExtractorLike | None = None


@contextmanager
def marking(
    pipe: DiffusionPipeline, keys: Sequence[Key], networks: Networks, spec: MarkSpec, token: Token | None = None
) -> Iterator[None]:
    """Have a pipeline mark what it generates inside the block; afterwards it is as before.

    Args:
        pipe: a text-to-image pipeline.
        keys: whose marks: one key for all images, or one for each image of a call; none if a token is given.
        networks: their mappers make the marks, if no token is given.
        spec: how the marks are written.
        token: writes the marks of all images.

    Raises:
        UsageError: a pipeline that cannot be marked so, no key and no token, or a token that cannot write so.
    """
    if token is not None:
        mark = CallMark((), with_token_carrier(spec), token)
    elif keys:
        spec = spec if spec.carrier is not None else spec.or_carrier(_carrier_for(pipe, networks))
        extractor = networks.extractor if spec.robust_steps else None
        mark = CallMark(tuple(keys), spec, extractor=extractor)
        if spec.network_carrier is not None:
            mapper = networks.mapper(spec.network_carrier)
            mark = replace(mark, **{f"{spec.network_carrier}_mapper": mapper})
    else:
        raise UsageError("Name at least one key.")
    by_call = mark.spec.carrier == "token" or spec.tau is not None
    if by_call and family_of(pipe).name != "stable-diffusion":
        what = "The carrier token" if mark.spec.carrier == "token" else "tau"
        raise UsageError(f"{what} needs a model of the Stable Diffusion 1 or 2 family; use the carrier latent.")

    def call(own: type[DiffusionPipeline], self: Any, given: dict[str, Any]) -> Any:
        if by_call:
            return own.__call__(self, **{**given, **marked_arguments(self, given, mark)[1]})
        if given.get("output_type") == "latent":
            raise UsageError('This mark is added when latents are decoded; leave output_type="latent" out.')
        with _marking_decoder(self, mark):
            return own.__call__(self, **given)

    with replaced_call(pipe, call):
        yield


def _carrier_for(pipe: Any, networks: Networks) -> Carrier:
    """The networks' own choice; a tile if they were made for latents of another model than the pipeline's."""
    carrier = networks.default_carrier
    if carrier == "latent":
        channels = config_value(networks.mapper("latent"), "channels", None)
        if channels is not None and channels != getattr(pipe.vae.config, "latent_channels", channels):
            return "tile"
    return carrier


@contextmanager
def _marking_decoder(pipe: Any, mark: CallMark) -> Iterator[None]:
    """Mark all latents that the pipeline's autoencoder decodes: before it decodes them, after it, or both."""
    marked_latents = None if mark.spec.network_carrier is None else _LatentMark(pipe, mark)
    within = False  # robust steps decode too, and these latents carry no mark

    def marked_decode(decode: Callable[..., Any], z: Tensor, *args: Any, **kwargs: Any) -> Any:
        nonlocal within
        if within:
            return decode(z, *args, **kwargs)
        if len(mark.keys) not in (1, len(z)):
            raise UsageError(f"expected one key, or one for each of {len(z)} images, got {len(mark.keys)}")
        if marked_latents is not None:
            within = True
            try:
                z = marked_latents(z)
            finally:
                within = False
        decoded = decode(z, *args, **kwargs)
        if mark.spec.has_tile:
            sample = decoded[0]
            sample.copy_(_tiled(sample, mark))
        return decoded

    with replaced_decode(pipe.vae, marked_decode):
        yield


class _LatentMark:
    """Adds the residual R(m) to latents as the autoencoder of a pipeline takes them."""

    def __init__(self, pipe: Any, mark: CallMark) -> None:
        if mark.latent_mapper is None:
            raise _no_mapper("latent")
        self.vae, self.mapper = pipe.vae, mark.latent_mapper
        self.bits = key_bits(mark.keys, self.mapper)
        self.robust = None
        if mark.extractor is not None:
            self.robust = RobustMarker(pipe, mark.extractor, mark.spec.robust_steps)

    def __call__(self, z: Tensor) -> Tensor:
        residual = self.mapper(self.bits, height=z.shape[-2], width=z.shape[-1])
        _check_channels(residual, z.shape[1])
        if self.robust is not None:
            scaled = (z.float() - shift(self.vae)) * scale(self.vae)
            residual = self.robust(scaled, residual.to(z).expand_as(z), self.bits)
        return z + residual.to(z) / scale(self.vae)


@torch.no_grad()
def _tiled(sample: Tensor, mark: CallMark) -> Tensor:
    """Decoded images (B, 3, H, W) in [-1, 1] with the tiles of their keys."""
    patterns = [pattern_with(key, mark.spec.payload) for key in mark.keys]
    patterns = patterns if len(patterns) == len(sample) else patterns * len(sample)
    marked = [
        mark_image((image.float() / 2 + 0.5).clamp(0, 1), pattern, psnr=mark.spec.quality).pixels
        for image, pattern in zip(sample, patterns, strict=True)
    ]
    return torch.stack(marked).mul(2).sub(1).to(sample)


def marked_arguments(pipe: Any, call: Mapping[str, Any], mark: CallMark) -> tuple[list[str], dict[str, Any]]:
    """The arguments that mark a call of a pipeline of the Stable Diffusion 1 or 2 family.

    Args:
        pipe: the pipeline.
        call: the arguments of its call by name, defaults included.
        mark: what to mark with.

    Returns:
        The public key ids of all images, and the arguments to change.

    Raises:
        UsageError: keys, token, carrier and mappers that do not go together, or no room in a prompt.
        ValueError: values out of range, shapes that do not fit, or no timestep at or below tau.
    """
    if mark.spec.has_tile:
        raise UsageError("This call writes the carriers token and latent; Watermark.on writes tiles.")
    images = _count_images(pipe, call)
    if len(mark.keys) not in (0, 1, images):
        raise UsageError(f"expected one key for each of {images} images, got {len(mark.keys)}")
    change = _token_arguments if mark.spec.carrier == "token" else _latent_arguments
    ids = [key.key_id for key in mark.keys] or [mark.token.key_id if mark.token is not None else ""]
    return ids * (images // len(ids)), change(pipe, call, mark, images)


def _count_images(pipe: Any, call: Mapping[str, Any]) -> int:
    checked = ("prompt", "callback_steps", "negative_prompt", "prompt_embeds", "negative_prompt_embeds")
    size = {side: call[side] or 8 * pipe.vae_scale_factor for side in ("height", "width")}
    pipe.check_inputs(**size, **{name: call.get(name) for name in checked})
    prompts = [call["prompt"]] if isinstance(call["prompt"], str) else call["prompt"]
    return int(len(call["prompt_embeds"] if prompts is None else prompts) * call["num_images_per_prompt"])


@torch.no_grad()
def _token_arguments(pipe: Any, call: Mapping[str, Any], mark: CallMark, images: int) -> dict[str, Any]:
    if call["prompt"] is None:
        raise UsageError("The carrier token needs the prompt itself, not prompt_embeds; or use the carrier latent.")
    embedding, opposite, trained_tau = _embedding(mark)
    tau = trained_tau if mark.spec.tau is None else mark.spec.tau
    prompts, clip_skip = _repeated(call["prompt"], images), call.get("clip_skip")
    marked = encode_with_token(pipe, prompts, embedding, clip_skip=clip_skip)
    negative, negative_embeds = call["negative_prompt"], call["negative_prompt_embeds"]
    against = None
    if opposite is not None and call["guidance_scale"] > 1:
        if negative_embeds is not None:
            raise UsageError(
                "This token changes the negative prompt too: give that as negative_prompt, not as embeddings."
            )
        against = encode_with_token(pipe, _repeated(negative or "", images), opposite, clip_skip=clip_skip)
    if _first_timestep(pipe, call) > tau:
        return _also(call, WatermarkCallback(marked, tau=tau, negative=against))
    # The token acts from the first step on: a callback would come too late.
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


def _latent_arguments(pipe: Any, call: Mapping[str, Any], mark: CallMark, images: int) -> dict[str, Any]:
    if mark.token is not None:
        raise UsageError("A token was given, and the carrier is latent; give a key instead, or the carrier token.")
    if mark.latent_mapper is None:
        raise _no_mapper("latent")
    canvas = Canvas.of_pipeline(pipe)
    height, width = ((call[side] or canvas.size) // canvas.patch for side in ("height", "width"))
    bits = key_bits(mark.keys, mark.latent_mapper)
    residual = mark.latent_mapper(bits, height=height, width=width)
    _check_channels(residual, canvas.channels)
    robust = None
    if mark.spec.robust_steps:
        if mark.extractor is None:
            raise UsageError("Robust steps fit a mark to its extractor; pass extractor=, or set the attribute.")
        robust = partial(RobustMarker(pipe, mark.extractor, mark.spec.robust_steps), bits=bits)
    return _also(call, LatentMarkCallback(residual, tau=mark.spec.tau, improve=robust))


def _check_channels(residual: Tensor, channels: int) -> None:
    if residual.shape[1] != channels:
        raise UsageError(
            f"The mapper makes residuals of {residual.shape[1]} channels, and the model's latents have {channels}: "
            "the mapper is another model's."
        )


def _first_timestep(pipe: Any, call: Mapping[str, Any]) -> float:
    """Where denoising begins, on the scale of 1000."""
    # Imported here, because it imports Stable Diffusion with all that its pipelines may need.
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import retrieve_timesteps

    scheduler = copy.deepcopy(pipe.scheduler)
    steps = (call["num_inference_steps"], "cpu", call.get("timesteps"), call.get("sigmas"))
    timesteps, _ = retrieve_timesteps(scheduler, *steps)
    return float(timesteps[0]) * 1000 / scheduler.config.get("num_train_timesteps", 1000)


def _embedding(mark: CallMark) -> tuple[Tensor, Tensor | None, float]:
    """Embeddings for the prompts, for the negative prompts, and the tau that they were made for."""
    if mark.token is not None:
        return mark.token.embedding, mark.token.negative, mark.token.tau
    if mark.token_mapper is None:
        raise _no_mapper("token")
    embedding, opposite = token_embeddings(mark.token_mapper, key_bits(mark.keys, mark.token_mapper))
    return embedding, opposite, config_value(mark.token_mapper, "tau", DEFAULT_TAU)


def _no_mapper(carrier: NetworkCarrier) -> UsageError:
    name = f"{carrier}_mapper"
    token = ", or give a token" if carrier == "token" else ""
    return UsageError(f'The carrier {carrier} needs a mapper; set {name} = load_extra("{name}", MODEL){token}.')


def _repeated(prompts: str | list[str], images: int) -> list[str]:
    """One prompt for each image, in the order in which Stable Diffusion makes them."""
    texts = [prompts] if isinstance(prompts, str) else prompts
    return [text for text in texts for _ in range(images // len(texts))]


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
    """The arguments that run `callback` after the caller's own one."""
    own = call["callback_on_step_end"]
    if own is None:
        return {"callback_on_step_end": callback}
    known = isinstance(own, PipelineCallback | MultiPipelineCallbacks)
    inputs = own.tensor_inputs if known else call["callback_on_step_end_tensor_inputs"]
    return {"callback_on_step_end": MultiPipelineCallbacks([_UserCallback(own, inputs), callback])}
