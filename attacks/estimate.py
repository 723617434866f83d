"""How long attacks will take: one step is measured, and said in a line before the work begins."""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from privgen.attacks.base import BaseAttack
from privgen.attacks.steps import Work, count_steps, listening


LONG = 10.0
"""Work that takes more seconds than this is announced."""

_FEW = 10  # steps of a tile beside which encoding and decoding count


class _MeasuredError(Exception):
    """Ends an attack whose steps have been measured."""


def measure_step(attack: BaseAttack, image: Tensor) -> float | None:
    """Return the seconds that a step of an attack takes for one image or tile, measured on its first steps.

    These are the first two, of which the second counts. If tiles take a few steps only, the time runs from the first
    step for one group of tiles to the first step for the next, because encoding and decoding take much of it.

    Args:
        attack: its model is loaded if it is not yet.
        image: (3, H, W) in [0, 1]; it does not change.

    Returns:
        None if the attack counts no steps.
    """
    work = attack.work(*image.shape[-2:])
    cycle = work[0].steps + 1 if work and work[0].tiles > 1 and work[0].steps <= _FEW else 2
    times, together = [time.perf_counter()], 1

    def note(images: int) -> None:
        nonlocal together
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        times.append(time.perf_counter())
        together = images
        if len(times) > cycle:
            raise _MeasuredError

    try:
        with listening(note), torch.no_grad():
            attack(image, generator=torch.Generator().manual_seed(0))
    except _MeasuredError:
        pass
    if len(times) <= 2:  # no step, or a single one, which counts from the start
        return None if len(times) == 1 else (times[1] - times[0]) / together
    return (times[-1] - times[1]) / (len(times) - 2) / together


def expected_seconds(works: Sequence[Sequence[Work]], measured: Sequence[Work], seconds: float) -> float:
    """Return how long attacks on images will take. A step takes time in proportion to its pixels.

    Args:
        works: the work for each image.
        measured: the work for the image whose step was measured.
        seconds: that a step of it took.
    """
    pixels = sum(part.total * part.pixels for work in works for part in work)
    return pixels * seconds / measured[0].pixels


def announcement(works: Sequence[Sequence[Work]], seconds: float) -> str:
    """Return a line such as "about 4 minutes for 3 images (12 tiles x 40 steps each)".

    Args:
        works: the work for each image.
        seconds: how long all of it will take.
    """
    images = "1 image" if len(works) == 1 else f"{len(works)} images"
    first = works[0]
    if len(first) == 1 and all(len(work) == 1 and work[0].total == first[0].total for work in works):
        tiles = "" if first[0].tiles == 1 else f"{first[0].tiles} tiles x "
        each = f"{tiles}{_counted(first[0].steps, 'step')}{'' if len(works) == 1 else ' each'}"
    else:
        each = f"{sum(map(count_steps, works))} steps of the model in all"
    return f"about {_duration(seconds)} for {images} ({each})"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return _counted(max(10 * round(seconds / 10), 10), "second")
    if seconds < 90 * 60:
        return _counted(round(seconds / 60), "minute")
    return _counted(round(seconds / 3600), "hour")


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
