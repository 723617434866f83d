"""What an evaluation of hallucinations measures, and how much of it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from privgen.errors import UsageError
from privgen.evaluation.hallucination.scenes import Scenes
from privgen.evaluation.hallucination.task import SamplingTask
from privgen.evaluation.hallucination.tasks import TASKS


@dataclass(frozen=True)
class Amount:
    """How much of a task is measured.

    Attributes:
        nfe: network calls a sample.
        seeds: trainings.
        samples: that each method keeps, of each seed.
        training_steps: of each network; scenes are made by the shipped one.
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
"""By name and task; scenes are measured at two numbers of steps."""


MIN_NFE = 12
"""Network calls with which the detector has something to look at, also when samples are rejected."""


@dataclass(frozen=True)
class Plan:
    """A task and how much of it is measured.

    Attributes:
        task: what.
        nfe: network calls a sample.
        seeds: how often everything is repeated, with other training data, weights and noise.
        samples: that each method keeps, of each seed.

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
                f"There are {self.seeds} seeds and {self.nfe} network calls; give at least 2 and {MIN_NFE}."
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
    """Plans by a preset, with single settings changed.

    Args:
        tasks: names in `TASKS`, or "scenes"; none is all.
        preset: name in `PRESETS`.
        nfe: see `Amount`, like the rest; None is the preset's.
        seeds: see `Amount`.
        samples: see `Amount`.
        training_steps: see `Amount`.

    Raises:
        UsageError: as `Plan` says.
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
    return list({plan.task.name: plan for plan in plans}.values())
