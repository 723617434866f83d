"""Work that several processes share: each does its part, and the result is that of one process."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar


Item = TypeVar("Item")

_PATIENCE = timedelta(hours=12)  # how long the first process to finish waits for the last


@dataclass(frozen=True)
class Processes:
    """The processes of one command.

    Attributes:
        rank: number of this process, from 0.
        count: how many processes there are.
        device: what this process computes on; "auto" for a process that is alone.
    """

    rank: int = 0
    count: int = 1
    device: str = "auto"

    @property
    def is_main(self) -> bool:
        """Whether this process prints and writes results."""
        return self.rank == 0

    def share(self, items: Sequence[Item], costs: Sequence[float] | None = None) -> list[Item]:
        """The items that this process does, in their order.

        Args:
            items: all that must be done.
            costs: of each item. The costliest are given out first, each to the process that has least to do. Without
                costs, a process does every `count`-th item.
        """
        if costs is None:
            return list(items[self.rank :: self.count])
        loads, owners = [0.0] * self.count, [0] * len(items)
        for i in sorted(range(len(items)), key=lambda i: -costs[i]):
            owners[i] = loads.index(min(loads))
            loads[owners[i]] += costs[i]
        return [item for item, owner in zip(items, owners, strict=True) if owner == self.rank]

    def gather(self, items: list[Item]) -> list[Item]:
        """The items of all processes, in the order of their ranks. Every process gets them all."""
        if self.count == 1:
            return items
        from accelerate.utils import gather_object

        gathered: list[Item] = gather_object(items)
        return gathered


def processes() -> Processes:
    """The processes that `accelerate launch` or `torchrun` started, or this one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Processes()
    import torch
    from accelerate import PartialState

    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_PATIENCE)
    return Processes(state.process_index, state.num_processes, str(state.device))
