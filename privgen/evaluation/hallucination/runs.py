"""One seed of a task: its data, its networks, which are kept, and the figures of every method."""

import math
from collections.abc import Mapping
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from privgen import __version__
from privgen.evaluation.hallucination.content import content_figures, matched_reduction
from privgen.evaluation.hallucination.methods import LOSSES, Method, Sampled, sample
from privgen.evaluation.hallucination.task import SamplingTask
from privgen.evaluation.result_log import ResultLog
from privgen.io.fingerprints import settings_fingerprint
from privgen.io.tensor_cache import load_or_make
from privgen.metrics.hallucination import auroc, nearest_training_distance


LOG = "rows.jsonl"
"""In the output folder, of the first process; that of process 1 is `rows-1.jsonl`, and so on."""
NETWORKS = "networks"
"""Folder in the output folder."""
DATA = "data"
"""Name, among the methods, of held-out data."""


class RowLog(ResultLog[dict[str, float]]):
    """Figures of finished methods."""

    field = "figures"

    def encode(self, value: dict[str, float]) -> Any:
        return {name: figure if math.isfinite(figure) else None for name, figure in value.items()}

    def decode(self, record: Any) -> dict[str, float]:
        return {str(name): math.nan if figure is None else float(figure) for name, figure in record.items()}


class SeedRun:
    """A task from one seed; data and networks are made when they are asked for.

    Args:
        task: what.
        seed: of data, weights and noise.
        nfe: network calls a sample.
        samples: that each method keeps.
        folder: of networks; None keeps them in memory only.
    """

    def __init__(self, task: SamplingTask, seed: int, *, nfe: int, samples: int, folder: Path | None) -> None:
        self.task, self.seed, self.nfe, self.samples = task, seed, nfe, samples
        self.folder = None if folder is None else folder / NETWORKS
        self._networks: dict[str, nn.Module] = {}

    @cached_property
    def data(self) -> Tensor:
        """The training set."""
        return self.task.training_set(self.seed)

    @cached_property
    def held_out(self) -> Tensor:
        """As many other data as samples."""
        return self.task.held_out(self.samples, self.seed)

    def figures(self, method: Method | None) -> dict[str, float]:
        """What is measured of a method, None is the held-out data."""
        if method is None:
            return self._measure(self.held_out)
        drawn = self.draw(method, self.samples)
        wrong = self.task.validate(drawn.x).hallucinated
        detected = {
            "auroc": auroc(drawn.scores, wrong),
            "auroc_running_variance": auroc(drawn.running_variance, wrong),
        }
        return self._measure(drawn.x) | detected

    def draw(self, method: Method, n: int) -> Sampled:
        """`n` samples, from the same noise for every method."""
        task = self.task
        return sample(
            task.denoiser(self.network(method.loss)),
            task.scheduler(),
            method,
            task.detector,
            nfe=self.nfe,
            shape=(n, *self.held_out.shape[1:]),
            generator=torch.Generator().manual_seed(self.seed),
            chunk=task.chunk,
        )

    def picture(self) -> Image.Image:
        """Samples of every method, with what is wrong marked."""
        return self.task.draw({name: self.draw(m, self.task.shown).x for name, m in self.task.methods.items()})

    def network(self, loss: str) -> nn.Module:
        """The network for a loss: from memory, from its file, or trained."""
        if loss not in self._networks:
            task = self.task
            work = fingerprint(asdict(task)["training"], task.data_settings(), repr(LOSSES[loss]))
            name = f"{task.name}-{loss}-{self.seed}-{work}.safetensors"

            def trained() -> Mapping[str, Tensor]:
                return task.train(self.data, loss, self.seed, lambda: self.network("simple")).state_dict()

            path = None if self.folder is None else self.folder / name
            network = task.build(loss, self.seed)
            network.load_state_dict(load_or_make(path, work, trained, "a denoiser", replace=True))
            self._networks[loss] = network.eval()
        return self._networks[loss]

    def _measure(self, x: Tensor) -> dict[str, float]:
        validation = self.task.validate(x)
        finite = x[x.flatten(1).isfinite().all(1)]
        nearest = float(nearest_training_distance(finite, self.data).mean()) if len(finite) else math.nan
        row = {"hallucinated": validation.fraction}
        if len(validation.fractions) > 1:
            row |= validation.fractions
        content = self.task.content(x)
        if content is not None:
            row |= content_figures(content, validation.hallucinated)
        return row | {**self.task.cover(x, self.held_out), "nearest": nearest}


def add_reductions(rows: Mapping[str, list[dict[str, float]]], baselines: Mapping[str, str]) -> None:
    """Add to every row "reduction", 1 - the hallucinated share over its baseline's, and "coverage_ratio", by seed.

    There is no "coverage_ratio" where nothing is covered. Where contents are told, there is "matched_reduction": see
    `privgen.evaluation.hallucination.content`.

    Args:
        rows: by method, one for each seed.
        baselines: name of what each method is compared with.
    """
    for name, plain in baselines.items():
        for row, before in zip(rows[name], rows[plain], strict=True):
            for figure, key in (("hallucinated", "reduction"), ("covered", "coverage_ratio")):
                if figure not in row:
                    continue
                ratio = row[figure] / before[figure] if before[figure] else math.nan
                row[key] = 1 - ratio if key == "reduction" else ratio
            if "content" in row:
                row["matched_reduction"] = matched_reduction(row, before)


def fingerprint(*parts: Any) -> str:
    """Return 16 hexadecimal digits that stand for all that something depends on."""
    return settings_fingerprint(*parts, __version__)[:16]
