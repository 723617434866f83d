"""The report of `evaluate hallucination`: figures over the seeds, the record, charts."""

from dataclasses import asdict, dataclass, field
from typing import Any

from PIL import Image

from privgen.environment import Environment
from privgen.evaluation.intervals import Measured
from privgen.evaluation.record import Report


@dataclass(frozen=True)
class TaskResult:
    """The results of a task.

    Attributes:
        nfe: network calls per sample, for every method.
        seeds: how many seeds were measured.
        samples: that each method kept, for each seed.
        reader_error: fraction of real data that the validator takes for hallucinated.
        ours: the methods that the summary reports; see `SamplingTask`.
        methods: the figures over the seeds of each method, and of held-out data as "data":

            - "hallucinated": the fraction of hallucinated samples; with several rules also the fraction for each rule.
            - "reduction": 1 - that fraction over the baseline's.
            - "coverage_ratio": "covered" over the baseline's.
            - "content", "matched_reduction": the mean content, and the reduction at equal content, if contents differ.
            - what `SamplingTask.cover` returns.
            - "nearest": the distance to the nearest training sample.
            - "auroc", "auroc_running_variance": of the two detectors.
    """

    nfe: int
    seeds: int
    samples: int
    reader_error: float
    ours: dict[str, str]
    methods: dict[str, dict[str, Measured]]

    def summary(self, *, vsm: bool = False) -> dict[str, Any]:
        """The main figures of the methods in `ours`, or of the published loss."""
        if "even" in self.methods["data"]:
            names = {"": self.ours["vsm" if vsm else "sampling"]}
        elif vsm:
            names = {"_trained": self.ours["vsm"]}
        else:
            names = {f"_{kind}": self.ours[kind] for kind in ("sampling", "trained") if kind in self.ours}
        found: dict[str, Any] = {}
        for suffix, name in names.items():
            row = self.methods[name]
            found[f"method{suffix}"] = name
            found[f"reduction{suffix}"] = row["reduction"]
            others = {"coverage": "coverage_ratio", "matched_reduction": "matched_reduction", "modes": "even"}
            found |= {f"{key}{suffix}": row[figure] for key, figure in others.items() if figure in row}
        return found


@dataclass(frozen=True)
class HallucinationEvaluation(Report):
    """The results of an evaluation.

    Attributes:
        tasks: by name.
        costs: how much longer a sampling step takes; see `step_ratios`.
        environment: versions and devices.
        pictures: charts and sheets by name.
    """

    tasks: dict[str, TaskResult]
    costs: dict[str, Measured]
    environment: Environment
    pictures: dict[str, Image.Image] = field(repr=False, compare=False)

    def figures(self) -> dict[str, Any]:
        detector: dict[str, Measured | None] = {}
        for name, task in self.tasks.items():
            first = next(method for method in task.methods if method != "data")
            detector[f"auroc_{name}"] = task.methods[first].get("auroc")
        return {
            **{name: task.summary() for name, task in self.tasks.items()},
            "detector": detector,
            **self.costs,
            "vsm": {name: task.summary(vsm=True) for name, task in self.tasks.items() if "vsm" in task.ours},
            "tasks": {name: asdict(task) for name, task in self.tasks.items()},
        }

    def table(self) -> list[dict[str, object]]:
        """The values, a row for each task and method."""
        return [
            {"task": task, "method": name, **{k: m.value for k, m in row.items()}}
            for task, result in self.tasks.items()
            for name, row in result.methods.items()
        ]
