"""Marked images beside unmarked ones: generated in pairs, and photographs at their own sizes."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from privgen.errors import PrivgenError
from privgen.evaluation.watermark.readings import CLEAN, Bits, Generation, Readings, joined, read
from privgen.hub import find_extra, load_extra, load_pipeline
from privgen.io.images import LoadedImage, load_image
from privgen.metrics.quality import psnr, ssim
from privgen.pipelines.pipeline_stable_diffusion_watermark import StableDiffusionWatermarkPipeline
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks, default_carrier
from privgen.watermark.protocols import ExtractorLike, key_bits
from privgen.watermark.read.p_values import p_values_of
from privgen.watermark.write.existing import mark_loaded
from privgen.watermark.write.mark_spec import CARRIERS, Carrier, MarkSpec
from privgen.watermark.write.marker import Marker


SHOWN, SHOWN_PHOTOS = 8, 4
"""Examples to keep for the pictures."""

_PLAIN = "plain"


@dataclass(frozen=True)
class WatermarkModel:
    """A model and its networks that mark and read.

    Attributes:
        name: what results call it.
        pipeline: a `StableDiffusionWatermarkPipeline`.
        extractor: reads the marks.
        mappers: by carrier, for those that are measured; None for a carrier that the model lacks.
        default: the carrier that the model recommends.
        robust_steps: rounds in which marks of the carrier `latent` are fitted to their image: see
            `privgen.watermark.write.robust_mark`.
    """

    name: str
    pipeline: Any = field(repr=False)
    extractor: ExtractorLike = field(repr=False)
    mappers: Mapping[Carrier, Any] = field(repr=False)
    default: Carrier = "latent"
    robust_steps: int = 0

    @property
    def present(self) -> tuple[Carrier, ...]:
        """The carriers that can be measured, the default one first if it is among them."""
        return tuple(sorted((c for c, mapper in self.mappers.items() if mapper is not None), key=self._rank))

    def marking(self, carrier: Carrier, keys: Sequence[Key]) -> dict[str, Any]:
        """What the pipeline is called with to mark images, one key an image."""
        mark = {"keys": list(keys), "carrier": carrier, f"{carrier}_mapper": self.mappers[carrier]}
        return mark | {"extractor": self.extractor, "robust_steps": self.rounds(carrier)}

    def marker(self, carrier: Carrier, seed: int = 0) -> Marker:
        """What marks existing images.

        Args:
            carrier: what to mark with.
            seed: of the noise that the carrier "token" works through.
        """
        mapper = {f"{carrier}_mapper": self.mappers[carrier]}
        networks = Networks.of(pipeline=self.pipeline, extractor=self.extractor, **mapper)
        return Marker(networks, MarkSpec(carrier, robust_steps=self.rounds(carrier), seed=seed))

    def rounds(self, carrier: Carrier) -> int:
        """Rounds in which marks of a carrier are fitted to their image; those of others than `latent` never are."""
        return self.robust_steps if carrier == "latent" else 0

    def _rank(self, carrier: Carrier) -> bool:
        return carrier != self.default


def load_watermark_model(
    model: str | os.PathLike[str] = "mini",
    *,
    carriers: Sequence[Carrier] = CARRIERS,
    robust_steps: int = 0,
    device: str = "auto",
    dtype: str = "auto",
) -> WatermarkModel:
    """Load what an evaluation needs, without a safety checker, whose black images would be measured as marks.

    Args:
        model: an embedded model's name, a folder or a Hub id.
        carriers: those to measure; one that the model lacks is no error.
        robust_steps: see `WatermarkModel`.
        device: see `privgen.hub.resolve_device`.
        dtype: see `privgen.hub.resolve_dtype`.

    Raises:
        PrivgenError: the model, or its extractor, cannot be found or read.
        UsageError: device or dtype do not exist.
    """
    extractor = load_extra("extractor", model, device=device)
    mappers = {carrier: _mapper(carrier, model, device) for carrier in dict.fromkeys(carriers)}
    kind = StableDiffusionWatermarkPipeline
    pipeline = load_pipeline(model, device=device, dtype=dtype, safety_checker=False, pipeline_class=kind)
    return WatermarkModel(
        os.fspath(model), pipeline, extractor, mappers, default_carrier(os.fspath(model)), robust_steps
    )


@dataclass(frozen=True, eq=False)
class MarkedImages:
    """What was measured on images with a mark.

    Attributes:
        messages: (images, n_bits), those of the keys.
        readings: what the extractor read.
        psnr_db: (images,) against the unmarked image, infinite where nothing changed.
        ssim: (images,)
        time_ratios: (batches,) time to generate a marked batch, by that of the same batch without marks.
    """

    messages: Bits
    readings: Readings
    psnr_db: NDArray[np.float64]
    ssim: NDArray[np.float64]
    time_ratios: tuple[float, ...] = ()

    def matches(self, attack: str = CLEAN) -> NDArray[np.int64]:
        """(images,) bits read right after an attack."""
        return ((self.readings[attack] > 0) == self.messages).sum(axis=1)

    def p_values(self, attack: str = CLEAN) -> NDArray[np.float64]:
        """(images,) of the weighted test for each image's own key, after an attack."""
        return p_values_of(self.readings[attack], self.messages, "weighted").diagonal()


@dataclass(frozen=True, eq=False)
class Example:
    """An image to show: (3, H, W) in [0, 1] without and with the mark, and what was measured on it."""

    title: str
    plain: Tensor
    marked: Tensor
    matches: int
    n_bits: int
    p_value: float
    psnr_db: float


def compare(
    plain: Sequence[Tensor] | Tensor,
    marked: Sequence[Tensor] | Tensor,
    keys: Sequence[Key],
    extractor: ExtractorLike,
) -> MarkedImages:
    """Measure marked images.

    Args:
        plain: B images without the mark, each (3, H, W) in [0, 1].
        marked: the same images with it.
        keys: whose mark each carries.
        extractor: reads them.
    """
    pairs = [(after[None], before[None]) for before, after in zip(plain, marked, strict=True)]
    return MarkedImages(
        key_bits(keys, extractor).cpu().numpy().astype(np.uint8),
        read(marked, extractor),
        np.array([float(psnr(*pair)) for pair in pairs]),
        np.array([float(ssim(*pair)) for pair in pairs]),
    )


def mark_generated(
    generation: Generation, model: WatermarkModel, keys: Sequence[Key]
) -> tuple[dict[Carrier, MarkedImages], dict[Carrier, list[Example]], Readings]:
    """Generate images without and with marks, batch by batch in turn.

    Args:
        generation: what to generate.
        model: its carriers are all measured.
        keys: one an image.

    Returns:
        What was measured by carrier, the first few images by carrier, and what was read from the unmarked images.
    """
    parts: dict[Carrier, list[MarkedImages]] = {carrier: [] for carrier in model.present}
    ratios: dict[Carrier, list[float]] = {carrier: [] for carrier in model.present}
    examples: dict[Carrier, list[Example]] = {carrier: [] for carrier in model.present}
    unmarked = []
    with tqdm(total=len(keys), desc="marked and plain", unit="image") as bar:
        for numbers in _batches(len(keys), generation.batch_size):
            owners = [keys[i] for i in numbers]
            # In turns, so that what slows the machine down for a while favours none.
            images, seconds = _timed_in_turn(generation, model, numbers, owners)
            plain = images[_PLAIN]
            unmarked.append(read(plain, model.extractor))
            for carrier in model.present:
                part = compare(plain, images[carrier], owners, model.extractor)
                parts[carrier].append(part)
                ratios[carrier].append(seconds[carrier] / seconds[_PLAIN])
                titles = [generation.prompt(i) for i in numbers]
                _keep(examples[carrier], titles, plain, images[carrier], part, SHOWN)
            bar.update(len(numbers))
    full = max(1, len(keys) // generation.batch_size)
    measured = {c: _joined(parts[c], _comparable(ratios[c], full)) for c in model.present}
    return measured, examples, joined(unmarked)


def mark_photos(
    paths: Sequence[Path], model: WatermarkModel, carrier: Carrier, keys: Sequence[Key], *, seed: int, batch_size: int
) -> tuple[MarkedImages, list[Example]]:
    """Mark photographs at their own sizes, as `privgen watermark embed` does.

    Args:
        paths: the photographs.
        model: marks and reads.
        carrier: what to mark with.
        keys: one a photograph.
        seed: of the noise that the carrier `token` works through.
        batch_size: photographs at a time.

    Returns:
        What was measured, and the first few photographs.

    Raises:
        PrivgenError: a photograph cannot be read.
    """
    parts: list[MarkedImages] = []
    examples: list[Example] = []
    with tqdm(total=len(paths), desc=f"photographs, {carrier}", unit="image") as bar:
        for numbers in _batches(len(paths), batch_size):
            owners = [keys[i] for i in numbers]
            photos = [load_image(paths[i]) for i in numbers]
            plain, marked = [photo.pixels for photo in photos], _marked(photos, model, carrier, owners, seed)
            parts.append(compare(plain, marked, owners, model.extractor))
            _keep(examples, [paths[i].stem for i in numbers], plain, marked, parts[-1], SHOWN_PHOTOS)
            bar.update(len(numbers))
    return _joined(parts), examples


def _mapper(carrier: Carrier, model: str | os.PathLike[str], device: str) -> Any:
    name = f"{carrier}_mapper"
    try:
        find_extra(name, model)
    except PrivgenError:
        return None  # the model itself is there: its extractor has been read
    return load_extra(name, model, device=device)


def _timed_in_turn(
    generation: Generation, model: WatermarkModel, numbers: range, keys: Sequence[Key]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """One batch without marks and with each carrier's, and the seconds that each took."""
    marks: dict[str, dict[str, Any]] = {_PLAIN: {}}
    for carrier in model.present:
        marks[carrier] = model.marking(carrier, keys)
    images, seconds = {}, {}
    turns = list(marks) if numbers.start // generation.batch_size % 2 == 0 else list(reversed(marks))
    for name in turns:
        start = perf_counter()
        images[name] = generation.images(numbers, **marks[name])
        seconds[name] = perf_counter() - start
    return images, seconds


@torch.no_grad()
def _marked(
    photos: Sequence[LoadedImage], model: WatermarkModel, carrier: Carrier, keys: Sequence[Key], seed: int
) -> list[Tensor]:
    marker = model.marker(carrier, seed)
    marked = mark_loaded(photos, [2**photo.bits - 1 for photo in photos], keys, marker)
    return [image.pixels for image in marked]


def _keep(
    examples: list[Example],
    titles: Sequence[str],
    plain: Sequence[Tensor] | Tensor,
    marked: Sequence[Tensor] | Tensor,
    measured: MarkedImages,
    most: int,
) -> None:
    """Keep images to show until there are enough."""
    n_bits, matches, p = measured.messages.shape[1], measured.matches(), measured.p_values()
    for i in range(min(len(titles), most - len(examples))):
        quality = float(measured.psnr_db[i])
        # Cloned, so that one image does not keep its batch in memory.
        pair = plain[i].clone(), marked[i].clone()
        examples.append(Example(titles[i], *pair, int(matches[i]), n_bits, float(p[i]), quality))


def _joined(parts: Sequence[MarkedImages], time_ratios: tuple[float, ...] = ()) -> MarkedImages:
    return MarkedImages(
        np.concatenate([part.messages for part in parts]),
        joined([part.readings for part in parts]),
        np.concatenate([part.psnr_db for part in parts]),
        np.concatenate([part.ssim for part in parts]),
        time_ratios,
    )


def _comparable(ratios: Sequence[float], full: int) -> tuple[float, ...]:
    """Without the first batch, which also pays for what is set up once, and a short last one."""
    return tuple(ratios[1:full] or ratios[:1])


def _batches(n: int, batch_size: int) -> Iterator[range]:
    for first in range(0, n, batch_size):
        yield range(first, min(first + batch_size, n))
