"""Marked images beside unmarked ones: generated in pairs, and photographs at their own sizes."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privgen.evaluation.watermark.generation import Generation
from privgen.evaluation.watermark.model import WatermarkModel
from privgen.evaluation.watermark.readings import CLEAN, Bits, Readings, joined, read
from privgen.io.images import load_image
from privgen.io.pixels import floats
from privgen.io.progress import Bar
from privgen.metrics.quality import psnr, ssim
from privgen.watermark.key import Key
from privgen.watermark.protocols import ExtractorLike, key_bits
from privgen.watermark.read.p_values import p_values_of
from privgen.watermark.write.mark_image import mark_loaded
from privgen.watermark.write.mark_spec import NetworkCarrier
from privgen.watermark.write.marker import Marker


SHOWN, SHOWN_PHOTOS = 8, 4
"""Examples to keep for the pictures."""

_PLAIN = "plain"


@dataclass(frozen=True, eq=False)
class MarkedImages:
    """What was measured on images with a mark.

    Attributes:
        messages: (images, n_bits), the bits of each image's key.
        readings: what the extractor read.
        psnr_db: (images,) against the unmarked image; infinite where nothing changed.
        ssim: (images,) likewise.
        time_ratios: (batches,) time to generate a marked batch, divided by that of the same batch without marks.
    """

    messages: Bits
    readings: Readings
    psnr_db: NDArray[np.float64]
    ssim: NDArray[np.float64]
    time_ratios: tuple[float, ...] = ()

    def matches(self, attack: str = CLEAN) -> NDArray[np.int64]:
        """(images,) bits that are read right after an attack."""
        return ((self.readings[attack] > 0) == self.messages).sum(axis=1)

    def p_values(self, attack: str = CLEAN) -> NDArray[np.float64]:
        """(images,) p-values of the weighted test for each image's own key, after an attack."""
        return p_values_of(self.readings[attack], self.messages, "weighted").diagonal()


@dataclass(frozen=True, eq=False)
class Example:
    """An image to show.

    Attributes:
        title: what it shows.
        plain: (3, H, W) in [0, 1] without the mark.
        marked: the same with the mark.
        matches: bits that are read right.
        n_bits: bits of the message.
        p_value: of the weighted test for the image's key.
        psnr_db: of `marked` against `plain`.
    """

    title: str
    plain: Tensor
    marked: Tensor
    matches: int
    n_bits: int
    p_value: float
    psnr_db: float


def compare(
    plain: Sequence[Tensor] | Tensor, marked: Sequence[Tensor] | Tensor, keys: Sequence[Key], extractor: ExtractorLike
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
) -> tuple[dict[NetworkCarrier, MarkedImages], dict[NetworkCarrier, list[Example]], Readings]:
    """Generate images without and with marks, batch by batch.

    Args:
        generation: what to generate.
        model: all of its carriers are measured.
        keys: one for each image.

    Returns:
        What was measured by carrier, the first few images by carrier, and what was read from the unmarked images.
    """
    parts: dict[NetworkCarrier, list[MarkedImages]] = {carrier: [] for carrier in model.carriers}
    ratios: dict[NetworkCarrier, list[float]] = {carrier: [] for carrier in model.carriers}
    examples: dict[NetworkCarrier, list[Example]] = {carrier: [] for carrier in model.carriers}
    unmarked = []
    with Bar(total=len(keys), desc="marked and plain", unit="image") as bar:
        for numbers in _batches(len(keys), generation.batch_size):
            owners, titles = [keys[i] for i in numbers], [generation.prompt(i) for i in numbers]
            images, seconds = _timed(generation, model, numbers, owners)
            plain = images[_PLAIN]
            unmarked.append(read(plain, model.extractor))
            for carrier in model.carriers:
                part = compare(plain, images[carrier], owners, model.extractor)
                parts[carrier].append(part)
                ratios[carrier].append(seconds[carrier] / seconds[_PLAIN])
                kept = examples[carrier]
                kept += _examples(titles, plain, images[carrier], part)[: SHOWN - len(kept)]
            bar.update(len(numbers))
    full = max(1, len(keys) // generation.batch_size)
    measured = {
        # Without the first batch, which also pays for what is set up once, and without a short last one.
        carrier: _joined(parts[carrier], tuple(ratios[carrier][1:full] or ratios[carrier][:1]))
        for carrier in model.carriers
    }
    return measured, examples, joined(unmarked)


@torch.no_grad()
def mark_photos(
    paths: Sequence[Path], keys: Sequence[Key], marker: Marker, *, batch_size: int
) -> tuple[MarkedImages, list[Example]]:
    """Mark photographs at their own sizes, as `privgen watermark embed` does, and read them.

    Args:
        paths: the photographs.
        keys: one for each photograph.
        marker: writes the marks; its model's extractor reads them.
        batch_size: photographs at a time.

    Returns:
        What was measured, and the first few photographs.

    Raises:
        PrivgenError: a photograph cannot be read.
    """
    parts: list[MarkedImages] = []
    examples: list[Example] = []
    with Bar(total=len(paths), desc=f"photographs, {marker.carrier}", unit="image") as bar:
        for numbers in _batches(len(paths), batch_size):
            owners, titles = [keys[i] for i in numbers], [paths[i].stem for i in numbers]
            photos = [load_image(paths[i]) for i in numbers]
            levels = [2**photo.bits - 1 for photo in photos]
            plain = [photo.pixels for photo in photos]
            marked = [floats(image.pixels) for image in mark_loaded(photos, levels, owners, marker)]
            parts.append(compare(plain, marked, owners, marker.networks.extractor))
            examples += _examples(titles, plain, marked, parts[-1])[: SHOWN_PHOTOS - len(examples)]
            bar.update(len(numbers))
    return _joined(parts), examples


def evenly(paths: Sequence[Path], n: int) -> list[Path]:
    """Up to n of the paths, spread evenly over them."""
    n = min(n, len(paths))
    return [paths[i * len(paths) // n] for i in range(n)]


def _timed(
    generation: Generation, model: WatermarkModel, numbers: range, keys: Sequence[Key]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """One batch without marks and with each carrier's, and the seconds that each took.

    The order changes with every batch, so that a machine that slows down for a while favours none.
    """
    images, seconds = {}, {}
    turns: list[NetworkCarrier | None] = [None, *model.carriers]
    if numbers.start // generation.batch_size % 2:
        turns.reverse()
    for carrier in turns:
        name = carrier or _PLAIN
        start = perf_counter()
        with model.marking(generation, keys, carrier) if carrier else nullcontext():
            images[name] = generation.images(numbers)
        seconds[name] = perf_counter() - start
    return images, seconds


def _examples(
    titles: Sequence[str],
    plain: Sequence[Tensor] | Tensor,
    marked: Sequence[Tensor] | Tensor,
    measured: MarkedImages,
) -> list[Example]:
    n_bits, matches, p = measured.messages.shape[1], measured.matches(), measured.p_values()
    return [
        # Cloned, so that one image does not keep its batch in memory.
        Example(
            title,
            plain[i].clone(),
            marked[i].clone(),
            int(matches[i]),
            n_bits,
            float(p[i]),
            float(measured.psnr_db[i]),
        )
        for i, title in enumerate(titles)
    ]


def _joined(parts: Sequence[MarkedImages], time_ratios: tuple[float, ...] = ()) -> MarkedImages:
    return MarkedImages(
        np.concatenate([part.messages for part in parts]),
        joined([part.readings for part in parts]),
        np.concatenate([part.psnr_db for part in parts]),
        np.concatenate([part.ssim for part in parts]),
        time_ratios,
    )


def _batches(n: int, batch_size: int) -> Iterator[range]:
    for first in range(0, n, batch_size):
        yield range(first, min(first + batch_size, n))
