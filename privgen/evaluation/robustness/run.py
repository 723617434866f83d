"""Marked and unmarked images under every attack, a batch at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from privgen.attacks import Attack
from privgen.evaluation.robustness.contestants import Contestant, Reader, SearchingReader, read_weighed
from privgen.evaluation.robustness.log import Log, Row, finite_or_none
from privgen.evaluation.robustness.perception import FEWEST, Perceived, perceive
from privgen.evaluation.robustness.plan import Planned
from privgen.evaluation.watermark.readings import CLEAN, Bits, Generation, Weighed, as_saved
from privgen.evaluation.workers import Processes
from privgen.io.fingerprints import seed_from
from privgen.metrics.quality import psnr, ssim
from privgen.watermark.key import Key


_SEARCHED = 4.0
"""Readings in which nothing is found, in those of a mark: a search then looks everywhere."""


@dataclass(frozen=True)
class Work:
    """What is measured.

    Attributes:
        contestants: the methods.
        planned: the attacks; those that lack something are passed over.
        generation: images without a mark, by number.
        keys: one an image.
        slow: images for slow methods, at most.
        negatives: of how many images the one without a mark is read too.
        perceptual: whether networks, where they are installed, compare images too.
    """

    contestants: Sequence[Contestant] = field(repr=False)
    planned: Sequence[Planned]
    generation: Generation
    keys: Sequence[Key] = field(repr=False)
    slow: int
    negatives: int
    perceptual: bool = True

    def numbers(self, contestant: Contestant, entry: Planned | None, among: Sequence[int]) -> list[int]:
        """Which of some images a method is measured on under an attack, or under none."""
        n = min(len(self.keys) if entry is None else entry.n, self.slow if contestant.slow else len(self.keys))
        return [number for number in among if number < n]

    def cost(self, among: Sequence[int], entries: Sequence[Planned | None]) -> float:
        """How long some images take, roughly, in readings of a mark that is found; what is in a log is counted too."""
        negatives = [number for number in among if number < self.negatives]
        counts = [len(self.numbers(method, entry, among)) for method in self.contestants for entry in entries]
        searched = [max(len(self.numbers(c, entry, negatives)) for c in self.contestants) for entry in entries]
        return sum(counts) + _SEARCHED * sum(searched)


def measure(work: Work, log: Log, processes: Processes) -> list[Row]:
    """Run everything that the log does not have, in batches that the processes share.

    An image, its attacks' random draws and so its rows depend on its number only. Batches are whole, so that two
    processes compute what one does.

    Returns:
        All rows, in every process.

    Raises:
        PrivgenError: the log cannot be written, or an attack fails.
    """
    size = work.generation.batch_size
    batches = [range(first, min(first + size, len(work.keys))) for first in range(0, len(work.keys), size)]
    entries: list[Planned | None] = [None, *(entry for entry in work.planned if entry.attack is not None)]
    mine = processes.share(batches, [work.cost(numbers, entries) for numbers in batches])
    rows: list[Row] = []
    with tqdm(total=len(mine) * len(entries), desc="attacks", unit="batch", disable=not processes.is_main) as bar:
        for numbers in mine:
            batch = Batch(work, numbers)
            for entry in entries:
                rows += _measured(batch, entry, log)
                bar.update(1)
    return processes.gather(rows)


class Batch:
    """Images of one batch, each made when it is first asked for."""

    def __init__(self, work: Work, numbers: Sequence[int]) -> None:
        self.work = work
        self.numbers = list(numbers)
        self._plain: Tensor | None = None
        self._marked: dict[str, Tensor] = {}

    def plain(self) -> Tensor:
        """(B, 3, H, W) without a mark."""
        if self._plain is None:
            self._plain = self.work.generation.images(self.numbers)
        return self._plain

    def marked(self, contestant: Contestant) -> Tensor:
        """The same with a mark; for a slow method only the first of them."""
        if contestant.name not in self._marked:
            numbers = self.work.numbers(contestant, None, self.numbers)
            owners = [self.work.keys[number] for number in numbers]
            self._marked[contestant.name] = contestant.mark(numbers, self.plain()[: len(numbers)], owners)
        return self._marked[contestant.name]

    def attacked(self, images: Tensor, entry: Planned | None) -> Tensor:
        """Images, of which row i is number i of the batch, under an attack, as they are saved."""
        if entry is None or entry.attack is None:
            return images
        return attacked(entry.attack, entry.key, images, self.numbers[: len(images)], self.work.generation.seed)


def attacked(attack: Attack, key: str, images: Tensor, numbers: Sequence[int], seed: int) -> Tensor:
    """Attack images and round them to 8 bits.

    Args:
        attack: any.
        key: what it is called; attacks draw differently.
        images: (B, 3, H, W) in [0, 1].
        numbers: of the images; the same number draws the same, whatever its mark and batch.
        seed: of all draws.
    """
    generators = [torch.Generator().manual_seed(seed_from(seed, key, number)) for number in numbers]
    with torch.no_grad():
        return as_saved(attack(images, generator=generators))


def _measured(batch: Batch, entry: Planned | None, log: Log) -> list[Row]:
    """Rows of a batch under an attack, from the log or new."""
    key = CLEAN if entry is None else entry.key
    rows: list[Row] = []
    missing: list[tuple[Contestant, list[int]]] = []
    for contestant in batch.work.contestants:
        numbers = batch.work.numbers(contestant, entry, batch.numbers)
        known = log.get(contestant.name, key, numbers)
        if known is not None and all(row.unmarked or row.image >= batch.work.negatives for row in known):
            # The log may hold more negatives than are asked for now; figures are of these alone.
            rows += [
                row if row.image < batch.work.negatives else replace(row, unmarked=None, unmarked_places=0)
                for row in known
            ]
        else:
            missing.append((contestant, numbers))
    if missing:
        longest = sum(number < batch.work.negatives for number in max((numbers for _, numbers in missing), key=len))
        images = batch.plain()[:longest]
        negatives = _Negatives(batch.attacked(images, entry) if longest else images)
        for contestant, numbers in missing:
            new = _new_rows(batch, entry, key, contestant, numbers, negatives)
            log.add(new)
            rows += new
    return rows


def _new_rows(
    batch: Batch, entry: Planned | None, key: str, contestant: Contestant, numbers: list[int], negatives: _Negatives
) -> list[Row]:
    marked = batch.marked(contestant)[: len(numbers)]
    result = batch.attacked(marked, entry)
    before = batch.plain()[: len(numbers)] if entry is None else marked
    messages = contestant.messages([batch.work.keys[number] for number in numbers])
    found, places = _look_for(contestant.reader, result, messages)
    count = sum(number < batch.work.negatives for number in numbers)
    unmarked, unmarked_places = negatives.read(contestant, messages[:count])
    told = [*unmarked.tolist(), *[None] * (len(numbers) - count)]
    unmarked_places += [0] * (len(numbers) - count)
    decibels, similarity = map(finite_or_none, psnr(result, before).tolist()), ssim(result, before).tolist()
    columns = (found.tolist(), told, decibels, similarity, places, unmarked_places)
    enough = len(batch.work.numbers(contestant, entry, range(len(batch.work.keys)))) >= FEWEST
    seen = perceive(result, before, with_features=enough) if batch.work.perceptual else [Perceived()] * len(numbers)
    return [
        Row(contestant.name, key, *row, **perceived)
        for row, perceived in zip(zip(numbers, *columns, strict=True), seen, strict=True)
    ]


def _look_for(reader: Reader, images: Tensor, messages: Bits) -> tuple[Weighed, list[int]]:
    """Weighed bits of images, and what their p-values are to be multiplied by."""
    if isinstance(reader, SearchingReader):
        return reader.look_for(images, messages)
    return read_weighed(reader, images), [1] * len(images)


class _Negatives:
    """Attacked images without a mark; methods that share a reader, and messages, read them once."""

    def __init__(self, images: Tensor) -> None:
        self._images = images
        self._read: dict[tuple[int, bytes], tuple[Weighed, list[int]]] = {}

    def read(self, contestant: Contestant, messages: Bits) -> tuple[Weighed, list[int]]:
        """Weighed bits of the first images, one a message, and `Row.unmarked_places`."""
        reader, count = contestant.reader, len(messages)
        if not count:
            return np.zeros((0, 1), np.int8), []
        known = (id(reader), messages.tobytes())
        if known not in self._read:
            weighed, places = _look_for(reader, self._images[:count], messages)
            searched = isinstance(reader, SearchingReader)
            self._read[known] = weighed, places if searched else [0] * count
        weighed, places = self._read[known]
        return weighed, list(places)
