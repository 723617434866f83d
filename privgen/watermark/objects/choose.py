"""Choose what writes the marks of objects: for an image that is there, or for each image of a pipeline's call."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from privgen.errors import UsageError
from privgen.models.object_code import ObjectCode
from privgen.watermark.objects.carrier import ObjectCarrier, TileCarrier
from privgen.watermark.objects.code import CodeReader
from privgen.watermark.objects.code_carrier import Denoising, LatentCarrier, TokenCarrier
from privgen.watermark.objects.keys import ObjectCarrierName, ObjectKeys
from privgen.watermark.objects.words import prompts_of_call


def object_carrier(name: ObjectCarrierName, networks: Any, payload: int | None = None) -> ObjectCarrier:
    """Return what writes the marks of objects in existing images.

    Args:
        name: of the carrier.
        networks: `privgen.watermark.networks.Networks` of the model that writes.
        payload: an ID that tiles carry; None is none.

    Raises:
        PrivgenError: the model has no code of objects.
        UsageError: no token of the model writes marks of objects, or a payload without tiles.
    """
    if name == "tile":
        return TileCarrier(payload)
    if payload is not None:
        raise UsageError("Tiles carry payloads; leave the payload out, or use the carrier tile.")
    reader = CodeReader(networks.pipeline, networks.object_code)
    return LatentCarrier(reader) if name == "latent" else TokenCarrier(reader)


@contextmanager
def carriers_of_call(
    pipe: Any, call: Mapping[str, Any], objects: ObjectKeys, code: ObjectCode | None
) -> Iterator[Callable[[int], ObjectCarrier]]:
    """Choose what writes the marks of objects in the images of one call of a pipeline, which is made in the block.

    Args:
        pipe: a text-to-image pipeline.
        call: the arguments of its call by name, defaults included.
        objects: which key owns which object, and by which carrier.
        code: of the pipeline's latents; None is enough for tiles.

    Yields:
        What returns the carrier of an image, by its number; once the image is denoised.

    Raises:
        UsageError: the pipeline has other latents than the code, or no step for a token to act in.
    """
    name = objects.carrier
    if name == "tile":
        yield lambda index: TileCarrier(objects.payload)
        return
    if code is None:
        raise UsageError(f"The carrier {name} needs a model with a code of objects; use the carrier tile.")
    channels = getattr(pipe.vae.config, "latent_channels", None)
    if channels != code.config.channels:
        raise UsageError(
            f"The code of objects is of latents of {code.config.channels} channels, and the pipeline has {channels}; "
            "use the carrier tile."
        )
    reader = CodeReader(pipe, code.to(pipe.device))
    _ = reader.guess  # says now, not after the last step, if the pipeline is of another kind
    if name == "latent":
        carrier = LatentCarrier(reader)
        yield lambda index: carrier
        return
    TokenCarrier(reader)  # says now if the model has no words
    with _last_steps(pipe, code.config.tau, call) as steps:
        yield lambda index: TokenCarrier(reader, steps(index))


@contextmanager
def _last_steps(pipe: Any, tau: float, call: Mapping[str, Any]) -> Iterator[Callable[[int], Denoising]]:
    """Keep the latents of a call at the first timestep t <= tau."""
    prompts = [row["text_encoder"] for row in prompts_of_call(pipe, call)]
    negative = call.get("negative_prompt") or ""
    against = [negative] * len(prompts) if isinstance(negative, str) else list(negative)
    kept: list[Tensor] = []
    begun: list[int] = []

    def before(unet: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample"]
        now = int(torch.as_tensor(args[1] if len(args) > 1 else kwargs["timestep"]).flatten()[0])
        if not kept and now * 1000 / pipe.scheduler.config.num_train_timesteps <= tau:
            kept.append(sample[-len(prompts) :].detach().float().clone())
            begun.append(now)

    def denoising(index: int) -> Denoising:
        if not kept:
            raise UsageError(
                f"No step of this run is at or below timestep {tau:g}, where a token acts; use more steps."
            )
        left = tuple(int(t) for t in pipe.scheduler.timesteps.tolist() if int(t) <= begun[0])
        guidance = float(call.get("guidance_scale") or 1.0)
        text = against[index * len(against) // len(prompts)]
        return Denoising(kept[0][index : index + 1], left, prompts[index], text, guidance)

    handle = pipe.unet.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield denoising
    finally:
        handle.remove()
