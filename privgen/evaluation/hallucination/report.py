"""The report of `evaluate hallucination`: figures over the seeds, the record, charts."""

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from privgen.data.sheets import save_picture
from privgen.environment import Environment
from privgen.evaluation.intervals import Measured
from privgen.evaluation.record import finite
from privgen.evaluation.text_to_image.evaluate import RESULTS
from privgen.io.files import write_text


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
class HallucinationEvaluation:
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

    def record(self) -> dict[str, Any]:
        """Everything except the pictures, as JSON."""
        detector = {f"auroc_{name}": task.methods[_plain(task)].get("auroc") for name, task in self.tasks.items()}
        return finite(
            {
                **{name: task.summary() for name, task in self.tasks.items()},
                "detector": detector,
                **self.costs,
                "vsm": {name: task.summary(vsm=True) for name, task in self.tasks.items() if "vsm" in task.ours},
                "tasks": {name: asdict(task) for name, task in self.tasks.items()},
                "environment": asdict(self.environment),
            }
        )

    def table(self) -> list[dict[str, object]]:
        """The values, a row for each task and method."""
        return [
            {"task": task, "method": name, **{k: m.value for k, m in row.items()}}
            for task, result in self.tasks.items()
            for name, row in result.methods.items()
        ]

    def save(self, folder: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write `results.json` and the plots.

        Raises:
            PrivgenError: a file exists and may not be replaced, or cannot be written.
        """
        for name, picture in self.pictures.items():
            save_picture(picture, Path(folder) / f"{name}.png", overwrite=overwrite)
        write_text(Path(folder) / RESULTS, json.dumps(self.record(), indent=2) + "\n", overwrite=overwrite)


def _plain(task: TaskResult) -> str:
    """The first method, whose detector figure the record shows."""
    return next(name for name in task.methods if name != "data")
