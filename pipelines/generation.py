"""Images from a prompt into files, plain or marked."""

import hashlib
import inspect
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import DiffusionPipeline
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from privgen import __version__
from privgen.diffusion.sampling import BATCH_SIZE, GUIDANCE, STEPS, generate_batches
from privgen.errors import UsageError
from privgen.hallucination.amplification import Amplification
from privgen.hallucination.scheduler import amplified
from privgen.hub import EMBEDDED, load_extra, load_pipeline, resolve_model
from privgen.io.batches import Ledger, progress_bar
from privgen.io.files import refuse_existing, write_bytes
from privgen.io.images import SAVE_FORMATS, LoadedImage, encode_image, to_pil
from privgen.metrics.hallucination import keep_best
from privgen.pipelines.detecting import detecting
from privgen.pipelines.pipeline_stable_diffusion_watermark import StableDiffusionWatermarkPipeline
from privgen.watermark.key import Key
from privgen.watermark.write.marker import Carrier, default_carrier


LEDGER = "images.jsonl"
"""In the output folder: what its images were made from, so that an interrupted batch goes on."""


@dataclass(frozen=True)
class GeneratedImage:
    """One image.

    Attributes:
        file: where it is.
        seed: its own; the same seed alone gives the same image.
        status: "done", "skipped" (the same call had made it before), or "rejected" (it was not written).
    """

    file: str
    seed: int
    status: Literal["done", "skipped", "rejected"]


@dataclass(frozen=True)
class GeneratedImages:
    """What one call made.

    Attributes:
        prompt: what the images show.
        model: as it was named.
        key: name of the key whose mark they carry; None for plain images.
        key_id: its public id.
        carrier: what the mark was written with.
        images: one entry for each image.
    """

    prompt: str
    model: str
    key: str | None
    key_id: str | None
    carrier: Carrier | None
    images: tuple[GeneratedImage, ...]


def generate_files(
    prompt: str,
    output: str | os.PathLike[str],
    *,
    n: int = 1,
    seed: int = 0,
    model: str = "mini",
    steps: int = STEPS,
    guidance_scale: float | None = None,
    negative_prompt: str | None = None,
    key: Key | None = None,
    carrier: Carrier | None = None,
    tau: float | None = None,
    robust_steps: int = 0,
    amplification: Amplification | None = None,
    reject: float = 0.0,
    device: str = "auto",
    dtype: str = "auto",
    overwrite: bool = False,
    progress: bool = False,
) -> GeneratedImages:
    """Generate images and write them.

    PNG files say in text chunks what made them: prompt, seed, model, settings and this package's version, but nothing
    of a mark. Repeated after an interruption, a call for several images skips those that it has made already.

    Args:
        prompt: what the images show.
        output: the image's file; or, for several images, a folder, in which they are called by their seeds.
        n: number of images.
        seed: of the first image; the others count up from it.
        model: an embedded model's name, a folder or a Hub id.
        steps: of denoising.
        guidance_scale: of classifier-free guidance; by default 3 for embedded models, for others what their pipeline
            uses.
        negative_prompt: what the images shall not show.
        key: whose mark they carry; plain images without.
        carrier: what the mark is written with; by default the model's own choice.
        tau: the mark acts on timesteps t <= tau, of 1000; by default what suits the carrier.
        robust_steps: rounds in which a mark of the carrier `latent` is fitted to its image, so that it survives
            regeneration; see `privgen.watermark.write.robust_mark`.
        amplification: of the score, against hallucination; None samples as the model's scheduler does.
        reject: share of the images, in [0, 1), to leave out: those in which the network sees most noise when it is
            asked once more; see `privgen.pipelines.detecting`. All are made before any is written, so such a call
            cannot be resumed.
        device: see `privgen.hub.resolve_device`.
        dtype: see `privgen.hub.resolve_dtype`.
        overwrite: replace files that exist.
        progress: show a bar on standard error, if that is a terminal.

    Raises:
        UsageError: an output that does not fit the number of images, a prompt too long for a token, a share of images
            to reject that is none of them, a mark that cannot be refined, or a scheduler that cannot be amplified.
        PrivgenError: an output exists or cannot be written; the model, or a network of it, cannot be found or read.
    """
    targets = _targets(Path(output), range(seed, seed + n))
    if reject and not 1 <= round(reject * n) < n:
        raise UsageError(f"A share of {reject:g} of {n} images rejects none or all of them; make more, or change it.")
    carrier = None if key is None else carrier or default_carrier(model)
    settings: dict[str, Any] = {"steps": steps, "guidance_scale": guidance_scale, "negative_prompt": negative_prompt}
    mark: dict[str, Any] = (
        {} if key is None else {"key": key, "carrier": carrier, "tau": tau, "robust_steps": robust_steps}
    )
    key_id = None if key is None else key.key_id
    changes: list[Any] = [] if amplification is None else [asdict(amplification)]
    changes += [{"robust_steps": robust_steps}] if robust_steps else []
    work = _digest(prompt, resolve_model(model), settings, key_id, carrier, tau, *changes)
    ledger = Ledger(Path(output) / LEDGER, work) if n > 1 and not reject else None
    wanted = {image: target for image, target in targets.items() if ledger is None or not ledger.has(target)}
    for target in wanted.values():
        refuse_existing(target, overwrite=overwrite)
    written: set[int] = set()
    if wanted:
        pipeline = _load(model, key, carrier, robust_steps, device, dtype)
        settings["guidance_scale"] = _default_guidance(pipeline, model) if guidance_scale is None else guidance_scale
        about = {"prompt": prompt, **settings, "model": _public_name(model), "privgen": __version__}
        about["amplification"] = None if amplification is None else json.dumps(asdict(amplification))
        call = {**settings, **mark, "batch_size": BATCH_SIZE if model in EMBEDDED else 1}
        images = _sampled(pipeline, prompt, list(wanted), amplification, reject, progress=progress, **call)
        for image_seed, pixels in images:
            data = _encode(pixels, wanted[image_seed].suffix, {**about, "seed": image_seed})
            _write(ledger, wanted[image_seed], data, overwrite)
            written.add(image_seed)
    made = tuple(
        GeneratedImage(str(target), s, "done" if s in written else "rejected" if s in wanted else "skipped")
        for s, target in targets.items()
    )
    return GeneratedImages(prompt, model, None if key is None else key.name, key_id, carrier, made)


def _targets(output: Path, seeds: range) -> dict[int, Path]:
    """File by seed."""
    looks_like_file = output.suffix.lower() in SAVE_FORMATS
    if len(seeds) == 1:
        if not looks_like_file:
            raise UsageError(f"{output} is no image file to write; end it in one of {', '.join(SAVE_FORMATS)}.")
        return {seeds[0]: output}
    if not output.is_dir() and (looks_like_file or output.exists()):
        raise UsageError(f"{output} is a file, and there are {len(seeds)} images; name a folder for them.")
    return {seed: output / f"{seed:04d}.png" for seed in seeds}


def _load(model: str, key: Key | None, carrier: Carrier | None, robust_steps: int, device: str, dtype: str) -> Any:
    if key is None:
        return load_pipeline(model, device=device, dtype=dtype)
    mapper = load_extra(f"{carrier}_mapper", model, device=device)
    pipeline = load_pipeline(model, device=device, dtype=dtype, pipeline_class=StableDiffusionWatermarkPipeline)
    setattr(pipeline, f"{carrier}_mapper", mapper)
    if robust_steps:
        pipeline.extractor = load_extra("extractor", model, device=device)
    return pipeline


def _default_guidance(pipeline: DiffusionPipeline, model: str) -> float:
    if model in EMBEDDED:
        return GUIDANCE
    parameter = inspect.signature(pipeline.__call__).parameters.get("guidance_scale")
    return GUIDANCE if parameter is None or parameter.default is None else float(parameter.default)


def _sampled(
    pipeline: DiffusionPipeline,
    prompt: str,
    seeds: Sequence[int],
    amplification: Amplification | None,
    reject: float,
    **options: Any,
) -> Iterator[tuple[int, Tensor]]:
    """Seeds and their images, as they are made, with what was asked for against hallucination."""
    if amplification is None and not reject:
        yield from _images(pipeline, prompt, seeds, **options)
        return
    if not reject:
        with amplified(pipeline, amplification):
            yield from _images(pipeline, prompt, seeds, **options)
        return
    kept: list[tuple[int, Tensor]] = []
    scores: list[float] = []
    with detecting(pipeline, amplification) as detector:
        for image in _images(pipeline, prompt, seeds, **options):
            kept.append(image)
            if len(kept) > len(scores):  # the first image of a batch: all of it has just been made
                scores += detector.scores().tolist()
    for index in keep_best(torch.tensor(scores), reject).tolist():
        yield kept[index]


def _images(
    pipeline: DiffusionPipeline,
    prompt: str,
    seeds: Sequence[int],
    *,
    batch_size: int,
    progress: bool,
    negative_prompt: str | None,
    **options: Any,
) -> Iterator[tuple[int, Tensor]]:
    """Seeds and their images, each (3, height, width) in [0, 1], as they are made."""
    with progress_bar(len(seeds), "generate", shown=progress) as bar:
        for first in range(0, len(seeds), batch_size):
            batch = seeds[first : first + batch_size]
            negative = None if negative_prompt is None else [negative_prompt] * len(batch)
            prompts = [prompt] * len(batch)
            made = generate_batches(
                pipeline, prompts, batch, batch_size=len(batch), negative_prompt=negative, **options
            )
            yield from zip(batch, next(made), strict=True)
            bar.update(len(batch))


def _encode(pixels: Tensor, suffix: str, about: Mapping[str, object]) -> bytes:
    """A file's content; as PNG with what the image is about in text chunks."""
    kind = SAVE_FORMATS[suffix.lower()]
    if kind != "PNG":
        return encode_image(LoadedImage(pixels), kind)
    chunks = PngInfo()
    for name, value in about.items():
        if value is not None:
            chunks.add_text(name, str(value))
    file = io.BytesIO()
    to_pil(pixels).save(file, "PNG", pnginfo=chunks)
    return file.getvalue()


def _write(ledger: Ledger | None, target: Path, data: bytes, overwrite: bool) -> None:
    if ledger is None:
        write_bytes(target, data, overwrite=overwrite)
    else:
        ledger.write(target, data, overwrite=overwrite)


def _public_name(model: str) -> str:
    """A model's name for others to read: of a folder its own name only, not where it lies."""
    return Path(model).name if Path(resolve_model(model)).is_dir() else model


def _digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
