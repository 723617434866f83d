"""Stable Diffusion that marks its images with a key."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from torch import Tensor

from privgen.errors import UsageError
from privgen.watermark.key import Key
from privgen.watermark.objects.in_pipeline import Record, marking_call
from privgen.watermark.objects.keys import ObjectKeys
from privgen.watermark.objects.masks import open_mask
from privgen.watermark.protocols import ExtractorLike, LatentMapperLike, TokenMapperLike
from privgen.watermark.token import Token
from privgen.watermark.write.in_pipeline import CallMark, marked_arguments
from privgen.watermark.write.mark_spec import Carrier, MarkSpec, NetworkCarrier
from privgen.watermark.write.replacing import bind_call


_PLAIN = inspect.signature(StableDiffusionPipeline.__call__)
_PLAIN_EXTRAS = frozenset({"callback", "callback_steps"})


@dataclass
class StableDiffusionWatermarkPipelineOutput(BaseOutput):
    """Generated images, and the keys that they are marked with.

    Attributes:
        images: as Stable Diffusion returns them: B Pillow images, or an array or tensor for other output types.
        nsfw_content_detected: for each image whether the safety checker found it unsafe; None without a checker.
        key_ids: for each image the public id of its key; None if images are not marked. (The field is not called
            `keys`, because that would hide the method that this class inherits from dict.) With objects, None.
        carrier: carrier of the marks; None if images are not marked.
        objects: for each image the objects that are marked, with their masks; None if none was named.
    """

    images: list[PIL.Image.Image] | NDArray[np.generic] | Tensor
    nsfw_content_detected: list[bool] | None
    key_ids: list[str] | None = None
    carrier: Carrier | None = None
    objects: Record | None = None


def _with_plain_signature(call: Callable[..., Any]) -> Callable[..., Any]:
    """Give a function the signature of the installed Stable Diffusion, followed by its own keyword arguments."""
    own = [p for p in inspect.signature(call).parameters.values() if p.kind is p.KEYWORD_ONLY]
    plain = [p for p in _PLAIN.parameters.values() if p.kind is not p.VAR_KEYWORD]
    call.__signature__ = inspect.Signature([*plain, *own])  # type: ignore[attr-defined]
    return call


class StableDiffusionWatermarkPipeline(StableDiffusionPipeline):
    """Stable Diffusion 1 or 2, or mini, that marks its images (arXiv 2503.11945).

    It has the components of `StableDiffusionPipeline` and is saved as one, so plain Diffusers can load it. The mappers
    are not components: set them as attributes, or pass them to each call.

        pipe = load_pipeline("mini", pipeline_class=StableDiffusionWatermarkPipeline)
        pipe.token_mapper = load_extra("token_mapper", "mini")
        output = pipe("a cat on a blue background", key=load_key("alice"))
        output.images[0], output.key_ids[0]

    Attributes:
        token_mapper: maps message bits to token embeddings, for the carrier `token`.
        latent_mapper: maps message bits to latent residuals, for the carrier `latent`.
        extractor: network that will read the marks, for `robust_steps`.
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
        carrier: NetworkCarrier = "token",
        tau: float | None = None,
        token: Token | None = None,
        token_mapper: TokenMapperLike | None = None,
        latent_mapper: LatentMapperLike | None = None,
        extractor: ExtractorLike | None = None,
        robust_steps: int = 0,
        objects: Mapping[str, Key] | None = None,
        masks: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> "StableDiffusionWatermarkPipelineOutput | tuple[Any, ...]":
        """Generate images. Without a key or token they equal those of `StableDiffusionPipeline` bit for bit.

        Args:
            *args: positional arguments of `StableDiffusionPipeline`.
            key: key that marks all images.
            keys: one key for each image: for each prompt in turn, `num_images_per_prompt` keys.
            carrier: "token" appends a token to the prompt late in denoising; "latent" adds a residual to the latents.
            tau: the mark acts on timesteps t <= tau, on the scale of 1000. By default that of the token, or the one
                that the token mapper was trained for. By default the carrier latent adds its residual after the last
                step.
            token: token to use instead of one that the mapper makes; you need not pass its key.
            token_mapper: used instead of the attribute.
            latent_mapper: used instead of the attribute.
            extractor: used instead of the attribute.
            robust_steps: number of steps that fit the residual of the carrier latent to its image, so that it survives
                regeneration; see `privgen.watermark.write.robust_mark`.
            objects: the key of each object, by the word of the prompt that names it; see `privgen.Watermark.on`. They
                are marked with tiles. `key` is then for all that is outside them.
            masks: masks of objects, by the same words, used instead of attention; see `privgen.Watermark.on`.
            **kwargs: keyword arguments of `StableDiffusionPipeline`.

        Returns:
            The output; if `return_dict` is False, the tuple of its five fields.

        Raises:
            TypeError: an argument is unknown. (`StableDiffusionPipeline` ignores unknown arguments.)
            UsageError: keys, token, carrier and mappers do not fit together, or a prompt leaves no room for the token.
            ValueError: a value is out of range, the shapes do not fit, or no timestep is at or below tau.
        """
        call = _bind(self, args, kwargs)
        return_dict, call["return_dict"] = call["return_dict"], False
        if objects is not None:
            if keys is not None or token is not None:
                raise UsageError("With objects, give one key for all that is outside them, or none.")
            opened = {name: open_mask(mask) for name, mask in (masks or {}).items()}
            with marking_call(self, call, ObjectKeys(objects, opened, key)) as made:
                images, unsafe = super().__call__(**call)
            marked = (images, unsafe, None, "tile", made)
            return StableDiffusionWatermarkPipelineOutput(*marked) if return_dict else marked
        if masks:
            raise UsageError("Masks are of objects; say with objects which key owns which.")
        mark = CallMark(
            keys=_given_keys(key, keys, token),
            spec=MarkSpec(carrier, tau=tau, robust_steps=robust_steps),
            token=token,
            token_mapper=self.token_mapper if token_mapper is None else token_mapper,
            latent_mapper=self.latent_mapper if latent_mapper is None else latent_mapper,
            extractor=self.extractor if extractor is None else extractor,
        )
        ids = None
        if mark.keys or token is not None:
            ids, changes = marked_arguments(self, call, mark)
            call |= changes
        images, unsafe = super().__call__(**call)
        output = (images, unsafe, ids, carrier if ids is not None else None, None)
        return StableDiffusionWatermarkPipelineOutput(*output) if return_dict else output

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save as a `StableDiffusionPipeline`, without the mappers."""
        needed = {"requires_safety_checker": self.config.requires_safety_checker}
        StableDiffusionPipeline(**self.components, **needed).save_pretrained(save_directory, **kwargs)


def _bind(pipe: StableDiffusionPipeline, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the plain pipeline by name. Unknown arguments are an error."""
    call = bind_call(StableDiffusionPipeline, pipe, args, kwargs)
    if unknown := sorted(set(call) - set(_PLAIN.parameters) - _PLAIN_EXTRAS):
        raise TypeError(f"unexpected arguments: {', '.join(unknown)}")
    return call


def _given_keys(key: Key | None, keys: Sequence[Key] | None, token: Token | None) -> tuple[Key, ...]:
    if key is not None and keys is not None:
        raise UsageError("Pass either key, for all images, or keys, one for each image.")
    given = tuple(keys) if keys is not None else () if key is None else (key,)
    if keys is not None and not given:
        raise UsageError("keys is empty; pass one key for each image, or leave it out.")
    if wrong := [item for item in given if not isinstance(item, Key)]:
        raise UsageError(f"expected a Key, got {type(wrong[0]).__name__}; load_key reads one from its file")
    if token is not None and any(item.key_id != token.key_id for item in given):
        raise UsageError(f"The token belongs to key {token.key_id}, not to the one given; leave the key out.")
    return given
