"""One seed of a task: its data, its networks, which are kept in files, and the figures of every method."""

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
from privgen.evaluation.hallucination.methods import LOSSES, Sampled, SamplingMethod, sample
from privgen.evaluation.hallucination.task import SamplingTask
from privgen.evaluation.result_log import ResultLog
from privgen.io.fingerprints import settings_fingerprint
from privgen.io.tensor_cache import load_or_make
from privgen.metrics.hallucination import auroc, nearest_training_distance


LOG = "rows.jsonl"
"""The first process's log in the output folder; that of process 1 is `rows-1.jsonl`, and so on."""
NETWORKS = "networks"
"""Folder of the networks in the output folder."""
DATA = "data"
"""Name of the held-out data among the methods."""


class RowLog(ResultLog[dict[str, float]]):
    """The figures of finished methods."""

    field = "figures"

    def encode(self, value: dict[str, float]) -> Any:
        return {name: figure if math.isfinite(figure) else None for name, figure in value.items()}

    def decode(self, record: Any) -> dict[str, float]:
        return {str(name): math.nan if figure is None else float(figure) for name, figure in record.items()}


class SeedRun:
    """One seed of a task. It draws data and trains networks when they are first needed.

    Args:
        task: what is measured.
        seed: of data, weights and noise.
        nfe: network calls per sample.
        samples: that each method keeps.
        folder: where networks are kept; None keeps them in memory only.
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
        """Data that no network has seen, as many as samples."""
        return self.task.held_out(self.samples, self.seed)

    def figures(self, method: SamplingMethod | None) -> dict[str, float]:
        """Measure a method; None measures the held-out data."""
        if method is None:
            return self._measure(self.held_out)
        drawn = self.draw(method, self.samples)
        wrong = self.task.validate(drawn.x).hallucinated
        detected = {
            "auroc": auroc(drawn.scores, wrong),
            "auroc_running_variance": auroc(drawn.running_variance, wrong),
        }
        return self._measure(drawn.x) | detected

    def draw(self, method: SamplingMethod, n: int) -> Sampled:
        """Sample with a method until it keeps `n`; all methods start from the same noise."""
        return sample(
            self.task.model(self.network(method.loss)),
            method,
            nfe=self.nfe,
            shape=(n, *self.held_out.shape[1:]),
            generator=torch.Generator().manual_seed(self.seed),
            chunk=self.task.chunk,
        )

    def picture(self) -> Image.Image:
        """A sheet of samples of every method, with what is wrong marked."""
        return self.task.draw({name: self.draw(m, self.task.shown).x for name, m in self.task.methods.items()})

    def network(self, loss: str) -> nn.Module:
        """The network for a loss, from memory, from its file, or trained now."""
        if loss not in self._networks:
            task = self.task
            work = work_fingerprint(asdict(task)["training"], task.data_settings(), repr(LOSSES[loss]))
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
    """Add to every row how it compares with the same seed of its baseline.

    "reduction" is 1 - the fraction of hallucinated samples over that of the baseline. "coverage_ratio" is the ratio of
    what is covered, if the rows have that. "matched_reduction" is the reduction at equal content, if the rows have
    contents; see `content.py`.

    Args:
        rows: of each method, one for each seed.
        baselines: for each method the name of its baseline.
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


def work_fingerprint(*settings: object) -> str:
    """A digest of settings and of this package's version, 16 hexadecimal digits."""
    return settings_fingerprint(*settings, __version__)[:16]
