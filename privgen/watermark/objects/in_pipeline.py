"""Mark the objects of images that a Diffusers pipeline generates, each with the key of its owner."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from torch import Tensor

from privgen.errors import UsageError
from privgen.models.object_code import ObjectCode
from privgen.watermark.objects.attention import WordAttention, recording
from privgen.watermark.objects.carrier import ObjectCarrier
from privgen.watermark.objects.choose import carriers_of_call
from privgen.watermark.objects.keys import ObjectKeys
from privgen.watermark.objects.masks import fitted
from privgen.watermark.objects.words import prompts_of_call, word_places
from privgen.watermark.objects.write import MarkedObject, ObjectMark, mark_objects
from privgen.watermark.tile.embed import mark_image
from privgen.watermark.tile.payload import pattern_with
from privgen.watermark.write.replacing import replaced_call, replaced_decode


@dataclass(frozen=True, kw_only=True)
class GeneratedObject(MarkedObject):
    """What became of one object of a generated image.

    Attributes:
        mask: (height, width) of 0 and 1, where the object is taken to be; a mask that was given keeps its values.
    """

    mask: Tensor = field(repr=False, compare=False)

    def without_mask(self) -> MarkedObject:
        """The same in numbers and words alone, for records."""
        return MarkedObject(**{entry.name: getattr(self, entry.name) for entry in fields(MarkedObject)})


Record = list[tuple[GeneratedObject, ...]]
"""For each image of a call its objects, in the order in which they were named."""


@contextmanager
def marking_objects(pipe: DiffusionPipeline, objects: ObjectKeys, code: ObjectCode | None = None) -> Iterator[Record]:
    """Have a pipeline mark the objects of what it generates inside the block; afterwards it is as before.

    Outside the slightly grown masks, images are bit for bit those of the pipeline.

    Args:
        pipe: a text-to-image pipeline that decodes latents; of a family of `privgen.models.family`, unless each object
            has a mask.
        objects: which key owns which object.
        code: of the pipeline's latents, for the carriers "latent" and "token".

    Yields:
        The objects of the last call. Outputs of the pipeline have the same as their attribute `objects`.

    Raises:
        UsageError: in a call of the pipeline, a word is not in a prompt, or its images cannot be marked so.
    """
    record: Record = []

    def call(own: type[DiffusionPipeline], self: Any, given: dict[str, Any]) -> Any:
        with marking_call(self, given, objects, code) as made:
            output = own.__call__(self, **given)
        record[:] = made
        if isinstance(output, BaseOutput):
            output.objects = made
        return output

    with replaced_call(pipe, call):
        yield record


@contextmanager
def marking_call(
    pipe: Any, call: Mapping[str, Any], objects: ObjectKeys, code: ObjectCode | None = None
) -> Iterator[Record]:
    """Mark the objects of one call of a pipeline, which is made inside the block.

    Args:
        pipe: see `marking_objects`.
        call: the arguments of the call by name, defaults included.
        objects: which key owns which object.
        code: see `marking_objects`.

    Yields:
        The objects, once the images are decoded.

    Raises:
        UsageError: see `marking_objects`.
    """
    if call.get("output_type") == "latent":
        raise UsageError('Objects are marked when latents are decoded; leave output_type="latent" out.')
    words, made = objects.words, Record()
    places = word_places(pipe, prompts_of_call(pipe, call), words) if words else []
    writing = False  # what marks are made of is decoded, too
    with (
        nullcontext() if not words else recording(pipe, places) as attention,
        carriers_of_call(pipe, call, objects, code) as carriers,
    ):

        def decode(plain: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            nonlocal writing
            decoded = plain(*args, **kwargs)
            if writing:
                return decoded
            writing = True
            try:
                made[:] = _mark(decoded[0], objects, attention, carriers)
            finally:
                writing = False
            return decoded

        with replaced_decode(pipe.vae, decode):
            yield made


@torch.no_grad()
def _mark(
    images: Tensor,
    objects: ObjectKeys,
    attention: WordAttention | None,
    carriers: Callable[[int], ObjectCarrier],
) -> Record:
    """Mark decoded images (B, 3, H, W) in [-1, 1] in place."""
    size = (images.shape[-2], images.shape[-1])
    given = {name: fitted(mask, size, name).to(images.device) for name, mask in objects.masks.items()}
    found = None
    if attention is not None:
        if attention.images != len(images):
            raise UsageError(f"expected {attention.images} images to be decoded at once, got {len(images)}")
        found = attention.masks((images.float() / 2 + 0.5).clamp(0, 1))
        attention.paused = True
    made = []
    for index, image in enumerate(images):
        masks = dict(given)
        if found is not None:
            masks |= dict(zip(objects.words, found[index], strict=True))
        made.append(_mark_one(image, objects, masks, carriers(index)))
    if attention is not None:
        attention.paused = False
    return made


def _mark_one(
    image: Tensor, objects: ObjectKeys, masks: Mapping[str, Tensor], carrier: ObjectCarrier
) -> tuple[GeneratedObject, ...]:
    plain = (image.float() / 2 + 0.5).clamp(0, 1)
    there = [ObjectMark(name, key, masks[name]) for name, key in objects.keys.items() if masks[name].max() >= 0.5]
    marked: dict[str, MarkedObject] = {}
    pixels = plain
    if there:
        result = mark_objects(plain, there, psnr=objects.psnr, rest=objects.rest, carrier=carrier)
        pixels, marked = result.pixels, {item.name: item for item in result.objects}
    elif objects.rest is not None:
        pixels = mark_image(plain, pattern_with(objects.rest, objects.payload)).pixels
    # What has no mark keeps its values: the way to [0, 1] and back would round them.
    image.copy_(torch.where(pixels != plain, pixels.to(plain) * 2 - 1, image.float()))
    note = "the image attends to it nowhere more than to the other objects; give its mask"
    return tuple(
        GeneratedObject(**vars(marked[name]), mask=masks[name])
        if name in marked
        else GeneratedObject(name, key.name, key.key_id, 0.0, float("inf"), 1.0, 0, note, mask=masks[name])
        for name, key in objects.keys.items()
    )
