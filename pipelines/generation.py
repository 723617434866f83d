"""Generate images from a prompt and write them to files, plain or marked."""

import inspect
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from privgen import __version__
from privgen.diffusion.sampling import BATCH_SIZE, GUIDANCE, Sampling, generate_batches
from privgen.errors import UsageError
from privgen.hallucination.amplification import Amplification
from privgen.hallucination.scheduler import amplified
from privgen.hub import EMBEDDED, model_label, resolve_model
from privgen.io.batches import BatchOptions, Ledger, progress_bar
from privgen.io.files import refuse_existing, write_bytes
from privgen.io.fingerprints import settings_fingerprint, tensor_fingerprint, weights_fingerprint
from privgen.io.images import SAVE_FORMATS, LoadedImage
from privgen.io.metadata import Metadata
from privgen.metrics.hallucination import keep_best
from privgen.models.tokenizer import unknown_words
from privgen.pipelines.detecting import detecting
from privgen.provenance.claim import SoftBinding
from privgen.provenance.seal import Origin
from privgen.watermark.networks import Networks
from privgen.watermark.objects.in_pipeline import Record, marking_objects
from privgen.watermark.objects.keys import ObjectKeys
from privgen.watermark.objects.write import MarkedObject, object_bindings
from privgen.watermark.token import Token
from privgen.watermark.write.in_pipeline import marking
from privgen.watermark.write.mark_spec import Carrier, KeyMark


LEDGER = "images.jsonl"
"""File in the output folder that records how its images were made, so that an interrupted batch can go on."""


@dataclass(frozen=True)
class GeneratedImage:
    """One generated image.

    Attributes:
        file: path of the image.
        seed: seed of the image.
        status: "done", "skipped" (an earlier run of the same call made it), or "rejected" (it was not written).
        objects: the objects that this call marked in it.
    """

    file: str
    seed: int
    status: Literal["done", "skipped", "rejected"]
    objects: tuple[MarkedObject, ...] = ()


@dataclass(frozen=True)
class GeneratedImages:
    """The result of one call.

    Attributes:
        prompt: the prompt.
        model: the model, as the caller named it.
        key: name of the key that marks the images, or all that is outside their objects; None if there is none.
        key_id: public id of the key; None if there is none.
        carrier: carrier of the marks; None for plain images.
        images: one entry for each image.
        notes: what you should know, such as that the model does not know a word of the prompt.
    """

    prompt: str
    model: str
    key: str | None
    key_id: str | None
    carrier: Carrier | None
    images: tuple[GeneratedImage, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class HallucinationControl:
    """How to reduce hallucinations while images are generated.

    Attributes:
        amplification: how to change the score; None leaves it as it is.
        reject: fraction of the images, in [0, 1), to leave out: those with the highest scores of the detector, see
            `privgen.pipelines.detecting`. All images are made before any is written, so such a call cannot be resumed.
    """

    amplification: Amplification | None = None
    reject: float = 0.0


def generate_files(
    prompt: str,
    output: str | os.PathLike[str],
    *,
    seeds: Sequence[int] = (0,),
    networks: Networks | None = None,
    sampling: Sampling | None = None,
    mark: KeyMark | None = None,
    control: HallucinationControl | None = None,
    batch: BatchOptions | None = None,
) -> GeneratedImages:
    """Generate images and write them.

    PNG files have text chunks with the prompt, seed, model, settings and version of this package, but with nothing
    about a mark. If you repeat a call for several images after an interruption, it skips those that it has made
    already.

    Args:
        prompt: the prompt.
        output: file of the image; for several images a folder, in which the files are named by seed.
        seeds: one for each image. The same seed gives the same image.
        networks: the model's networks, by default those of mini.
        sampling: how to sample images.
        mark: key of the mark, and how to write it; None for plain images.
        control: how to reduce hallucinations.
        batch: how to write files.

    Raises:
        UsageError: the output does not fit the number of images, the prompt leaves no room for a token, the fraction
            to reject is none or all of the images, the mark cannot be written this way, or the scheduler cannot be
            amplified.
        PrivgenError: an output exists or cannot be written; or the model, or one of its networks, cannot be found or
            read.
    """
    networks, sampling = networks or Networks(safety_checker=True), sampling or Sampling()
    control, batch = control or HallucinationControl(), batch or BatchOptions()
    targets = _targets(Path(output), seeds)
    if control.reject and not 1 <= round(control.reject * len(seeds)) < len(seeds):
        raise UsageError(
            f"A fraction of {control.reject:g} of {len(seeds)} images rejects none or all of them; make more, or "
            "change it."
        )
    if mark is not None and mark.spec.carrier is None:
        mark = replace(mark, spec=mark.spec.or_carrier(networks.default_carrier))
    ledger = None
    if len(seeds) > 1 and not control.reject:
        ledger = Ledger(Path(output) / LEDGER, _work(prompt, networks, sampling, mark, control) + batch.made_by())
    wanted = {seed: target for seed, target in targets.items() if ledger is None or not ledger.has(target)}
    for target in wanted.values():
        refuse_existing(target, overwrite=batch.overwrite)
    written: dict[int, tuple[MarkedObject, ...]] = {}
    if wanted:
        sampling = _complete(sampling, networks)
        about = _about(prompt, networks, sampling, control.amplification)
        with (
            _marking(networks, mark) as record,
            progress_bar(len(wanted), "generate", shown=batch.progress) as bar,
        ):
            made = _sampled(networks.pipeline, prompt, list(wanted), sampling, control, bar)
            for index, (seed, pixels) in enumerate(made):
                written[seed] = ()
                if record and not control.reject:  # the record is of the batch that has just been made
                    written[seed] = tuple(item.without_mask() for item in record[index % (sampling.batch_size or 1)])
                text = {name: str(value) for name, value in {**about, "seed": seed}.items() if value is not None}
                image = LoadedImage(pixels, metadata=Metadata(text=tuple(text.items())))
                data, _ = batch.encode(image, wanted[seed], _origin(networks, mark, written[seed]))
                if ledger is None:
                    write_bytes(wanted[seed], data, overwrite=batch.overwrite)
                else:
                    ledger.write(wanted[seed], data, overwrite=batch.overwrite)
    images = tuple(
        GeneratedImage(
            str(target), s, "done" if s in written else "rejected" if s in wanted else "skipped", written.get(s, ())
        )
        for s, target in targets.items()
    )
    owner = None if mark is None else mark.key if mark.objects is None else mark.objects.rest
    return GeneratedImages(
        prompt=prompt,
        model=str(networks.model),
        key=None if owner is None else owner.name,
        key_id=None if mark is None else mark.key_id or None,
        carrier=None if mark is None else mark.spec.carrier,
        images=images,
        notes=_notes(networks, prompt) if wanted else (),
    )


def _notes(networks: Networks, prompt: str) -> tuple[str, ...]:
    """Say which words of a prompt the model was not taught."""
    tokenizer = getattr(networks.pipeline, "tokenizer", None)
    if tokenizer is None or not (unknown := unknown_words(tokenizer, prompt)):
        return ()
    return (f"This model was not taught {', '.join(map(repr, unknown))}, so the image will hardly show it.",)


def _work(
    prompt: str, networks: Networks, sampling: Sampling, mark: KeyMark | None, control: HallucinationControl
) -> str:
    """Fingerprint everything that a file depends on, except its seed and the version of this package."""
    source = resolve_model(networks.model) if networks.model is not None else _weights_of(networks)
    key = None if mark is None else [mark.key_id, asdict(mark.spec), _token_fingerprint(mark.token)]
    if mark is not None and mark.objects is not None:
        key = [*(key or []), _objects_fingerprint(mark.objects)]
    amplification = None if control.amplification is None else asdict(control.amplification)
    return settings_fingerprint(prompt, source, asdict(replace(sampling, batch_size=None)), key, amplification)


def _token_fingerprint(token: Token | None) -> str | None:
    if token is None:
        return None
    parts = (token.embedding,) if token.negative is None else (token.embedding, token.negative)
    return settings_fingerprint(tensor_fingerprint(*parts), token.tau)


def _objects_fingerprint(objects: ObjectKeys) -> str:
    owners = {name: key.key_id for name, key in objects.keys.items()}
    masks = {name: tensor_fingerprint(mask) for name, mask in objects.masks.items()}
    return settings_fingerprint(owners, masks, objects.psnr, objects.payload)


def _marking(networks: Networks, mark: KeyMark | None) -> AbstractContextManager[Record | None]:
    if mark is None:
        return nullcontext()
    if mark.objects is not None:
        code = None if mark.objects.carrier == "tile" else networks.object_code
        return marking_objects(networks.pipeline, mark.objects, code)
    keys = [] if mark.key is None else [mark.key]
    return marking(networks.pipeline, keys, networks, mark.spec, mark.token)


def _origin(networks: Networks, mark: KeyMark | None, objects: Sequence[MarkedObject]) -> Origin:
    """What a seal says of an image: the model that made it, and the marks that it carries."""
    bindings: Sequence[SoftBinding] = ()
    if mark is not None and mark.objects is not None:
        kind: Literal["tile", "latent"] = "tile" if mark.objects.carrier == "tile" else "latent"
        bindings = object_bindings(objects, kind, mark.objects.payload, mark.objects.rest)
    elif mark is not None:
        bindings = mark.spec.bindings(mark.key_id)
    name = type(networks.pipeline).__name__ if networks.model is None else model_label(networks.model)
    version = __version__ if networks.model in EMBEDDED else networks.revision or ""
    return Origin(bindings, system=name, system_version=version)


def _weights_of(networks: Networks) -> str:
    """Fingerprint a pipeline that was not loaded from a model."""
    pipe = networks.pipeline
    modules = [module for module in pipe.components.values() if isinstance(module, torch.nn.Module)]
    return settings_fingerprint(*(weights_fingerprint(module) for module in modules))


def _complete(sampling: Sampling, networks: Networks) -> Sampling:
    """Replace a guidance scale or batch size of None by the model's own."""
    own = networks.model in EMBEDDED
    scale, size = sampling.guidance_scale, sampling.batch_size
    if scale is None:
        parameter = inspect.signature(networks.pipeline.__call__).parameters.get("guidance_scale")
        known = parameter is not None and isinstance(parameter.default, int | float)
        scale = float(parameter.default) if known and not own and parameter is not None else GUIDANCE
    return replace(sampling, guidance_scale=scale, batch_size=size or (BATCH_SIZE if own else 1))


def _about(
    prompt: str, networks: Networks, sampling: Sampling, amplification: Amplification | None
) -> dict[str, object]:
    """Return the text chunks of an image."""
    return {
        "prompt": prompt,
        "steps": sampling.steps,
        "guidance_scale": sampling.guidance_scale,
        "negative_prompt": sampling.negative_prompt,
        "model": "None" if networks.model is None else model_label(networks.model),
        "privgen": __version__,
        "amplification": None if amplification is None else json.dumps(asdict(amplification)),
    }


def _targets(output: Path, seeds: Sequence[int]) -> dict[int, Path]:
    """Return the output file for each seed."""
    looks_like_file = output.suffix.lower() in SAVE_FORMATS
    if len(seeds) == 1:
        if not looks_like_file:
            raise UsageError(f"{output} is no image file to write; end it in one of {', '.join(SAVE_FORMATS)}.")
        return {seeds[0]: output}
    if not output.is_dir() and (looks_like_file or output.exists()):
        raise UsageError(f"{output} is a file, and there are {len(seeds)} images; name a folder for them.")
    return {seed: output / f"{seed:04d}.png" for seed in seeds}


def _sampled(
    pipeline: DiffusionPipeline,
    prompt: str,
    seeds: Sequence[int],
    sampling: Sampling,
    control: HallucinationControl,
    bar: Any,
) -> Iterator[tuple[int, Tensor]]:
    """Yield seeds and images (3, height, width) in [0, 1] as they are made, without the images to reject."""

    def batches() -> Iterator[tuple[Sequence[int], Tensor]]:
        size = sampling.batch_size or 1
        for first in range(0, len(seeds), size):
            some = seeds[first : first + size]
            images = next(
                generate_batches(pipeline, [prompt] * len(some), some, replace(sampling, batch_size=len(some)))
            )
            bar.update(len(some))
            yield some, images

    if not control.reject:
        changed = nullcontext() if control.amplification is None else amplified(pipeline, control.amplification)
        with changed:
            for some, images in batches():
                yield from zip(some, images, strict=True)
        return
    kept: list[tuple[int, Tensor]] = []
    scores: list[float] = []
    with detecting(pipeline, control.amplification) as detector:
        for some, images in batches():
            kept += list(zip(some, images, strict=True))
            scores += detector.scores().tolist()
    for index in keep_best(torch.tensor(scores), control.reject).tolist():
        yield kept[index]
