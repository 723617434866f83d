"""Writes and reads each case once, and keeps what was measured of it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from privgen import __version__
from privgen.evaluation.objects.cases import PHOTOGRAPHS, Case, CaseSource, neighbour
from privgen.evaluation.objects.log import Log, Row
from privgen.evaluation.objects.readings import Reading, crop_half, jpeg, pasted, read, read_alone, written
from privgen.evaluation.watermark.generation import draw_keys
from privgen.evaluation.workers import Processes
from privgen.io.fingerprints import seed_from, settings_fingerprint
from privgen.io.progress import Bar
from privgen.watermark.key import Key


STRANGERS = 5
"""Keys that own nothing, with which images are compared too."""
SEARCHED_EVERY = 10
"""In moved images, strangers are searched for in every tenth case; after JPEG in other cases than without."""
AS_IS, CROP_HALF, PASTED, JPEG_75 = "as_is", "crop_half", "pasted", "_jpeg_75"
"""What happens to images. `JPEG_75` is added to the name of each of the others."""

_CHANGES = {"one_object": (AS_IS, CROP_HALF, PASTED), PHOTOGRAPHS: (AS_IS, PASTED)}
_COSTS = {"one_object": 5.0, PHOTOGRAPHS: 10.0}  # of a case, over that of a scene that is read as it is


@dataclass(frozen=True)
class Task:
    """One case that must be measured."""

    source: CaseSource
    number: int


def tasks_of(sources: Sequence[tuple[CaseSource, int]]) -> list[list[Task]]:
    """All cases, in the order of their numbers; neighbours, which need each other's images, are together.

    Args:
        sources: each with how many of its cases are measured.
    """
    longest = max((n for _, n in sources), default=0)
    return [
        [Task(source, number) for number in range(first, min(first + 2, n))]
        for first in range(0, longest, 2)
        for source, n in sources
        if first < n
    ]


def measure(sources: Sequence[tuple[CaseSource, int]], seed: int, log: Log, processes: Processes) -> list[Row]:
    """Measure what the log does not hold, together with other processes.

    A row depends on the seed and on its number only, so a run with smaller numbers of cases gives the first rows of a
    longer one.

    Args:
        sources: each with how many of its cases are measured.
        seed: of the keys that own nothing, and of what happens to images.
        log: of this process.
        processes: those that share the work.

    Returns:
        All rows, the same in every process, in the order of the sources and of their numbers.

    Raises:
        PrivgenError: the log cannot be written, or a photograph cannot be read.
    """
    groups = tasks_of(sources)
    costs = [len(group) * _COSTS.get(group[0].source.setting, 1.0) for group in groups]
    mine = [task for group in processes.share(groups, costs) for task in group]
    strangers = draw_keys(STRANGERS, torch.Generator().manual_seed(seed_from(seed, "strangers")), "stranger")
    rows = []
    for task in Bar(mine, desc="objects", unit="case", disable=not processes.is_main):
        work = settings_fingerprint(
            __version__,
            task.source.work(task.number),
            seed,
            STRANGERS,
            SEARCHED_EVERY,
            changes_of(task.source.setting),
        )[:16]
        row = log.get(work)
        if row is None:
            row = _measured(task, seed, strangers)
            log.add(work, row)
        rows.append(row)
    place = {source.setting: i for i, (source, _) in enumerate(sources)}
    return sorted(processes.gather(rows), key=lambda row: (place[row.setting], row.number))


def changes_of(setting: str) -> list[str]:
    """What happens to the images of a setting before they are read."""
    return [name + suffix for name in _CHANGES.get(setting, (AS_IS,)) for suffix in ("", JPEG_75)]


def _measured(task: Task, seed: int, strangers: Sequence[Key]) -> Row:
    case, setting = task.source.case(task.number), task.source.setting
    readings = {name: _read(task, case, name, seed, strangers) for name in changes_of(setting)}
    return Row(setting, task.number, written(case), readings)


def _read(task: Task, case: Case, name: str, seed: int, strangers: Sequence[Key]) -> Reading:
    """What is read of a case after one change."""
    compressed, change = name.endswith(JPEG_75), name.removesuffix(JPEG_75)
    rng = np.random.Generator(np.random.PCG64(seed_from(seed, change, task.source.setting, task.number)))
    image, keys = case.marked, case.keys
    truth: Tensor | None = case.truth
    if change == CROP_HALF:
        image, truth = crop_half(image, case.truth, rng)
    elif change == PASTED:
        image, truth, keys = pasted(case, task.source.plain(neighbour(task.number)), rng), None, keys[:1]
    image = jpeg(image) if compressed else image
    if change == AS_IS:
        return read(image, truth, keys, strangers)
    if (task.number + 1) % SEARCHED_EVERY == (SEARCHED_EVERY // 2 if compressed else 0):
        return read(image, truth, keys, strangers, search=True)
    return read_alone(image, truth, keys, len(strangers))
