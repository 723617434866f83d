"""Which tasks an evaluation of hallucinations measures, and how much of each."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from privgen.errors import UsageError
from privgen.evaluation.hallucination.scenes import Scenes
from privgen.evaluation.hallucination.task import SamplingTask
from privgen.evaluation.hallucination.tasks import TASKS


MIN_NFE = 12
"""Fewest network calls per sample; with fewer, too few steps are left to a method that rejects samples."""


@dataclass(frozen=True)
class Amount:
    """How much of a task is measured.

    Attributes:
        nfe: network calls per sample.
        seeds: how many seeds; each has training data, networks and noise of its own.
        samples: that each method keeps, for each seed.
        training_steps: of each network; none for scenes, which the shipped model makes.
    """

    nfe: int
    seeds: int
    samples: int
    training_steps: int = 0


PRESETS: Mapping[str, Mapping[str, Amount]] = {
    "quick": {
        "line": Amount(100, 2, 2000, 1000),
        "grid": Amount(100, 2, 2000, 4000),
        "shapes": Amount(25, 2, 200, 200),
        "chess": Amount(25, 2, 100, 200),
        "scenes-15": Amount(15, 2, 12),
        "scenes-25": Amount(25, 2, 12),
    },
    "standard": {
        "line": Amount(100, 4, 5000, 4000),
        "grid": Amount(100, 4, 20_000, 10_000),
        "shapes": Amount(25, 4, 1000, 600),
        "chess": Amount(25, 4, 1000, 600),
        "scenes-15": Amount(15, 4, 100),
        "scenes-25": Amount(25, 4, 100),
    },
}
"""Amounts by preset and task. Scenes are measured at two numbers of steps."""


@dataclass(frozen=True)
class Plan:
    """A task, and how much of it is measured.

    Attributes:
        task: what is measured.
        nfe: network calls per sample.
        seeds: how many seeds; each has training data, networks and noise of its own.
        samples: that each method keeps, for each seed.

    Raises:
        UsageError: fewer than 2 seeds, or fewer calls than `MIN_NFE`.
    """

    task: SamplingTask | Scenes
    nfe: int
    seeds: int
    samples: int

    def __post_init__(self) -> None:
        if self.seeds < 2 or self.nfe < MIN_NFE:
            raise UsageError(
                f"--seeds is {self.seeds} and --nfe is {self.nfe}; give at least 2 seeds and {MIN_NFE} network calls."
            )


def plan(
    tasks: Collection[str],
    preset: str,
    *,
    nfe: int | None = None,
    seeds: int | None = None,
    samples: int | None = None,
    training_steps: int | None = None,
) -> list[Plan]:
    """Plan an evaluation by a preset, with single amounts changed.

    Args:
        tasks: names in `TASKS`, or "scenes"; an empty collection is all of them.
        preset: name in `PRESETS`.
        nfe: see `Amount`, as for the next three; None keeps the amount of the preset.
        seeds: how many seeds.
        samples: that each method keeps.
        training_steps: of each network.

    Raises:
        UsageError: fewer than 2 seeds, or fewer calls than `MIN_NFE`.
    """
    given = {"nfe": nfe, "seeds": seeds, "samples": samples, "training_steps": training_steps}
    changes = {name: value for name, value in given.items() if value is not None}
    plans = []
    for name, amount in PRESETS[preset].items():
        if tasks and name.split("-")[0] not in tasks:
            continue
        amount = replace(amount, **changes)
        task = Scenes(steps=amount.nfe) if name not in TASKS else TASKS[name]().trained_for(amount.training_steps)
        plans.append(Plan(task, amount.nfe, amount.seeds, amount.samples))
    # With --nfe, both kinds of scenes are the same task.
    return list({plan.task.name: plan for plan in plans}.values())
