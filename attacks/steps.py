"""The steps of attacks with a model: how many there are, and a bar that follows them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


_listener: ContextVar[Callable[[int], None] | None] = ContextVar("listener", default=None)


@dataclass(frozen=True)
class Work:
    """What a model has to do for one image.

    Attributes:
        tiles: how many pieces of the image go through the model; 1 for an image that goes through it whole.
        steps: how often each piece goes through it.
        pixels: of one piece.
    """

    tiles: int
    steps: int
    pixels: int

    @property
    def total(self) -> int:
        """Steps of all pieces."""
        return self.tiles * self.steps


def count_steps(work: Sequence[Work]) -> int:
    """Return the steps of all the work for an image."""
    return sum(part.total for part in work)


def step_done(images: int) -> None:
    """Tell whoever listens that a model has done one step. Attacks with a model call it after each step.

    Args:
        images: how many images or tiles went through the model together.
    """
    listener = _listener.get()
    if listener is not None:
        listener(images)


@contextmanager
def listening(listener: Callable[[int], None]) -> Iterator[None]:
    """Call `listener` after each step inside the block, with the number of images or tiles that made it together."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


@contextmanager
def advancing(bar: Any, total: int) -> Iterator[None]:
    """Move a bar with the steps inside the block, and to `total` steps at its end, also if there were fewer.

    Args:
        bar: of tqdm.
        total: the steps that were expected.
    """
    done = 0

    def advance(images: int) -> None:
        nonlocal done
        step = min(images, total - done)
        done += step
        bar.update(step)

    with listening(advance):
        yield
    bar.update(total - done)
