"""What `evaluate hallucination` found: figures over the seeds, the record, plots."""

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
    """What was measured of a task.

    Attributes:
        nfe: network calls a sample, for every method.
        seeds: of trainings and samples.
        samples: kept by each method, by seed.
        reader_error: share of real data that the validator takes for hallucinated.
        ours: names of the methods that stand for this package; see `SamplingTask`.
        methods: for each method its figures over the seeds: "hallucinated", where there are several rules the share
            that breaks each, "reduction" (of the hallucinated share against the sampler's plain one, by seed),
            "coverage_ratio" (of "covered" to the plain one's), where `SamplingTask.content` is known "content" (its mean) and
            "matched_reduction" (at the plain one's content), what `SamplingTask.cover` gives, "nearest" (distance to the
            training data) and "auroc" (of the detector); "data" is a held-out set of real samples.
    """

    nfe: int
    seeds: int
    samples: int
    reader_error: float
    ours: dict[str, str]
    methods: dict[str, dict[str, Measured]]

    def summary(self, *, vsm: bool = False) -> dict[str, Any]:
        """The figures that bars are set for, of this package or of the published loss."""
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
    """What was measured.

    Attributes:
        tasks: by name.
        costs: times of a sampling step with over without; see `step_ratios`.
        environment: versions.
        pictures: plots by name.
    """

    tasks: dict[str, TaskResult]
    costs: dict[str, Measured]
    environment: Environment
    pictures: dict[str, Image.Image] = field(repr=False, compare=False)

    def record(self) -> dict[str, Any]:
        """Everything but the pictures, in the terms of JSON."""
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
        """A row for each task and method."""
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
    """The first method: that of the detector's figure."""
    return next(name for name in task.methods if name != "data")
