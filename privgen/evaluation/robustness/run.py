"""Marked and unmarked images under every attack, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from privgen.attacks import BaseAttack
from privgen.evaluation.robustness.contestants import Contestant, Findings, KeyReader, read_weighed
from privgen.evaluation.robustness.log import Log, Row, finite_or_none
from privgen.evaluation.robustness.perception import FEWEST, Perceived, perceive
from privgen.evaluation.robustness.plan import Planned
from privgen.evaluation.watermark.generation import as_saved
from privgen.evaluation.watermark.readings import CLEAN
from privgen.evaluation.workers import Processes
from privgen.io.fingerprints import seed_from
from privgen.io.progress import Bar
from privgen.metrics.quality import psnr, ssim
from privgen.metrics.visible_difference import visible_difference
from privgen.watermark.key import Key


_SEARCHED = 4.0
"""Time of a reading in which nothing is found, by that of one that finds the mark: a search looks everywhere."""


class ImageSource(Protocol):
    """Images without a mark, by number: the same number gives the same image."""

    @property
    def seed(self) -> int:
        """Seed of the attacks."""
        ...

    @property
    def batch_size(self) -> int:
        """Images at a time; 1 if they differ in size."""
        ...

    def images(self, numbers: Sequence[int]) -> Tensor:
        """The images of these numbers: (B, 3, H, W) in [0, 1], rounded to 8 bits."""
        ...


@dataclass(frozen=True)
class Comparison:
    """What is measured: methods on the same images, under the same attacks.

    Attributes:
        contestants: the methods.
        planned: the attacks; those that lack something are passed over.
        source: images without a mark, by number.
        keys: one for each image.
        slow: images for slow methods, at most.
        negatives: how many images are read without a mark too.
        perceptual: whether networks compare images too, where they are installed.
    """

    contestants: Sequence[Contestant] = field(repr=False)
    planned: Sequence[Planned]
    source: ImageSource
    keys: Sequence[Key] = field(repr=False)
    slow: int
    negatives: int
    perceptual: bool = True

    def numbers(self, contestant: Contestant, entry: Planned | None, among: Sequence[int]) -> list[int]:
        """Those of some images that a method is measured on under an attack, or without one."""
        n = min(len(self.keys) if entry is None else entry.n, self.slow if contestant.slow else len(self.keys))
        return [number for number in among if number < n]

    def cost(self, among: Sequence[int], entries: Sequence[Planned | None]) -> float:
        """How long some images take, in readings of a mark that is found; roughly, as if no log had any of them."""
        negatives = [number for number in among if number < self.negatives]
        counts = [len(self.numbers(method, entry, among)) for method in self.contestants for entry in entries]
        searched = [max(len(self.numbers(c, entry, negatives)) for c in self.contestants) for entry in entries]
        return sum(counts) + _SEARCHED * sum(searched)


def measure(comparison: Comparison, log: Log, processes: Processes) -> list[Row]:
    """Measure everything that the log does not hold, in batches that the processes share.

    An image, the random draws of its attacks and so its rows depend on its number only. A batch is never split, so
    several processes compute what one does.

    Args:
        comparison: what is measured.
        log: keeps the rows.
        processes: those that share the work.

    Returns:
        All rows, in every process.

    Raises:
        PrivgenError: the log cannot be written, or an attack fails.
    """
    size = comparison.source.batch_size
    batches = [range(first, min(first + size, len(comparison.keys))) for first in range(0, len(comparison.keys), size)]
    entries: list[Planned | None] = [None, *(entry for entry in comparison.planned if entry.attack is not None)]
    mine = processes.share(batches, [comparison.cost(numbers, entries) for numbers in batches])
    rows: list[Row] = []
    with Bar(total=len(mine) * len(entries), desc="attacks", unit="batch", disable=not processes.is_main) as bar:
        for numbers in mine:
            batch = Batch(comparison, numbers)
            for entry in entries:
                rows += _measured(batch, entry, log)
                bar.update(1)
    return processes.gather(rows)


class Batch:
    """The images of one batch, each made when it is first asked for.

    Args:
        comparison: what is measured.
        numbers: of the images.
    """

    def __init__(self, comparison: Comparison, numbers: Sequence[int]) -> None:
        self.comparison = comparison
        self.numbers = list(numbers)
        self._plain: Tensor | None = None
        self._marked: dict[str, Tensor] = {}

    def plain(self) -> Tensor:
        """The images without a mark: (B, 3, H, W) in [0, 1]."""
        if self._plain is None:
            self._plain = self.comparison.source.images(self.numbers)
        return self._plain

    def marked(self, contestant: Contestant) -> Tensor:
        """The images with a method's mark; for a slow method only the first of them."""
        if contestant.name not in self._marked:
            numbers = self.comparison.numbers(contestant, None, self.numbers)
            owners = [self.comparison.keys[number] for number in numbers]
            self._marked[contestant.name] = contestant.mark(numbers, self.plain()[: len(numbers)], owners)
        return self._marked[contestant.name]

    def attacked(self, images: Tensor, entry: Planned | None) -> Tensor:
        """Images of the batch, from its first one on, as they are saved after an attack; without one, unchanged."""
        if entry is None or entry.attack is None:
            return images
        return attacked(entry.attack, entry.key, images, self.numbers[: len(images)], self.comparison.source.seed)


def attacked(attack: BaseAttack, key: str, images: Tensor, numbers: Sequence[int], seed: int) -> Tensor:
    """Attack images and round them to 8 bits.

    Args:
        attack: any.
        key: the attack's key; each key draws differently.
        images: (B, 3, H, W) in [0, 1].
        numbers: of the images; the same number draws the same, whatever the mark and the batch.
        seed: of all draws.
    """
    generators = [torch.Generator().manual_seed(seed_from(seed, key, number)) for number in numbers]
    with torch.no_grad():
        return as_saved(attack(images, generator=generators))


def _measured(batch: Batch, entry: Planned | None, log: Log) -> list[Row]:
    """Rows of a batch under an attack, from the log or new."""
    key, comparison = CLEAN if entry is None else entry.key, batch.comparison
    rows: list[Row] = []
    missing: list[tuple[Contestant, list[int]]] = []
    for contestant in comparison.contestants:
        numbers = comparison.numbers(contestant, entry, batch.numbers)
        known = log.get(contestant.name, key, numbers)
        if known is not None and all(row.unmarked or row.image >= comparison.negatives for row in known):
            # The log may hold more negatives than are asked for now; only those asked for count.
            rows += [
                row
                if row.image < comparison.negatives
                else replace(row, unmarked=None, unmarked_places=0, unmarked_p_value=None)
                for row in known
            ]
        else:
            missing.append((contestant, numbers))
    if missing:
        longest = max(len(numbers) for _, numbers in missing)
        count = sum(number < comparison.negatives for number in batch.numbers[:longest])
        images = batch.plain()[:count]
        size = (images.shape[-2], images.shape[-1])
        negatives = _Negatives(batch.attacked(images, entry) if count else images, size)
        for contestant, numbers in missing:
            new = _new_rows(batch, entry, contestant, numbers, negatives)
            log.add(new)
            rows += new
    return rows


def _new_rows(
    batch: Batch, entry: Planned | None, contestant: Contestant, numbers: list[int], negatives: _Negatives
) -> list[Row]:
    comparison = batch.comparison
    marked = batch.marked(contestant)[: len(numbers)]
    result = batch.attacked(marked, entry)
    before = batch.plain()[: len(numbers)] if entry is None else marked
    keys = [comparison.keys[number] for number in numbers]
    found = _look_for(contestant, result, keys, (marked.shape[-2], marked.shape[-1]))
    count = sum(number < comparison.negatives for number in numbers)
    unmarked = negatives.read(contestant, keys[:count])
    searched = isinstance(contestant.reader, KeyReader)
    compared = _compared(comparison, contestant, entry, result, before)
    return [
        Row(
            contestant.name,
            CLEAN if entry is None else entry.key,
            number,
            marked=found.weighed[i].tolist(),
            unmarked=unmarked.weighed[i].tolist() if i < count else None,
            places=found.places[i],
            unmarked_places=unmarked.places[i] if i < count and searched else 0,
            p_value=found.p_values[i],
            unmarked_p_value=unmarked.p_values[i] if i < count else None,
            **compared[i],
        )
        for i, number in enumerate(numbers)
    ]


class _Compared(Perceived):
    """How an image differs from what it was before; see `Row`."""

    psnr_db: float | None
    ssim: float | None
    visible_de_p99: float | None
    visible_de_mean: float | None


def _compared(
    comparison: Comparison, contestant: Contestant, entry: Planned | None, images: Tensor, before: Tensor
) -> list[_Compared]:
    """Compare images with what they were before; images of another size cannot be compared."""
    unknown = _Compared(psnr_db=None, ssim=None, visible_de_p99=None, visible_de_mean=None)
    if images.shape != before.shape:
        return [unknown] * len(images)
    decibels, similarity = psnr(images, before).tolist(), ssim(images, before).tolist()
    enough = len(comparison.numbers(contestant, entry, range(len(comparison.keys)))) >= FEWEST
    seen = perceive(images, before, with_features=enough) if comparison.perceptual else [Perceived()] * len(images)
    compared = []
    for i, (image, reference) in enumerate(zip(images, before, strict=True)):
        row: _Compared = {**unknown, **seen[i], "psnr_db": finite_or_none(decibels[i]), "ssim": similarity[i]}
        if entry is None:
            difference = visible_difference(image, reference)
            row["visible_de_p99"] = float(np.percentile(difference.numpy(), 99))
            row["visible_de_mean"] = float(difference.mean())
        compared.append(row)
    return compared


def _look_for(contestant: Contestant, images: Tensor, keys: Sequence[Key], size: tuple[int, int]) -> Findings:
    """What images say about their keys; `size` is that in which they were marked."""
    reader = contestant.reader
    if isinstance(reader, KeyReader):
        return reader.look_for(images, keys, size)
    return Findings(read_weighed(reader, images), [1] * len(images), [None] * len(images))


class _Negatives:
    """Attacked images without a mark. Methods that share a reader read them once."""

    def __init__(self, images: Tensor, size: tuple[int, int]) -> None:
        self._images, self._size = images, size
        self._read: dict[tuple[int, int], Findings] = {}

    def read(self, contestant: Contestant, keys: Sequence[Key]) -> Findings:
        """What the first images say, one for each key."""
        count = len(keys)
        if not count:
            return Findings(np.zeros((0, 1), np.int8), [], [])
        known = (id(contestant.reader), count)
        if known not in self._read:
            self._read[known] = _look_for(contestant, self._images[:count], keys, self._size)
        return self._read[known]
