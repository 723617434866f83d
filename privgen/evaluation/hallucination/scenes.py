"""Whether what helps on small tasks helps the shipped text-to-image model, on scenes that a classifier reads."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor

from privgen.data.scenes import PREVIEW_SEED, sample_spec
from privgen.diffusion.sampling import Sampling, generate_batches
from privgen.evaluation.hallucination.methods import Method, affordable
from privgen.evaluation.hallucination.pictures import picture_rows
from privgen.evaluation.hallucination.settings import LOW
from privgen.evaluation.intervals import fraction
from privgen.hallucination.amplification import Amplification
from privgen.hub import load_pipeline
from privgen.metrics.hallucination import auroc, keep_best
from privgen.metrics.scenes import SceneJudgement, classified_right, judge, load_classifier
from privgen.pipelines.detecting import DETECTOR, detecting


SCENE_METHODS: Mapping[str, Method] = {
    "plain": Method("ddim"),
    "gamma 1.2 below 400": Method("ddim", amplification=Amplification(1.2, window=LOW)),
    "reject 0.2": Method("ddim", reject=0.2),
}
"""The first is what the others are compared with."""
_BATCH = 20
_FIRST, _SPACING = 300, 1_000_000  # of the prompts: other ones than `evaluate model` takes


@dataclass(frozen=True)
class Scenes:
    """Scenes by mini; one is hallucinated if the classifier does not find the objects asked for and no others.

    Attributes:
        methods: of sampling, by name; the first is the baseline.
        ours: "sampling" names the method that stands for this package.
        steps: of denoising, each with a batch of two network calls.
        read: drawn scenes on which the classifier's own error is measured.
        shown: pictures of a method on the sheet.
    """

    methods: Mapping[str, Method] = field(default_factory=lambda: dict(SCENE_METHODS))
    ours: Mapping[str, str] = field(default_factory=lambda: {"sampling": "reject 0.2"})
    steps: int = 25
    read: int = 500
    shown: int = 12
    family: ClassVar[str] = "scenes"

    @property
    def name(self) -> str:
        """Of the task, with its steps."""
        return f"{self.family}-{self.steps}"

    @property
    def reader_error(self) -> float:
        """Share of drawn scenes in which the classifier does not find what is there."""
        return _reader_error(self.read)


@dataclass(frozen=True)
class _Made:
    """Images (N, 3, H, W), how many objects each was asked to show, what is seen in them, what detectors say (N,)."""

    images: Tensor
    asked: list[int]
    judged: list[SceneJudgement]
    scores: Tensor
    running_variance: Tensor

    @property
    def wrong(self) -> Tensor:
        """(N,) bool."""
        return torch.tensor([not found.exact for found in self.judged])


class SceneRun:
    """Scenes from one seed.

    Args:
        task: what.
        seed: of prompts and noise.
        samples: that each method keeps.
    """

    def __init__(self, task: Scenes, seed: int, *, samples: int) -> None:
        self.task, self.seed, self.samples = task, seed, samples
        self._measured: dict[Method, _Made] = {}

    @cached_property
    def pipeline(self) -> DiffusionPipeline:
        """The shipped model."""
        return load_pipeline()

    def figures(self, method: Method | None) -> dict[str, float]:
        """What is measured of a method, None is the classifier's error on drawn scenes."""
        if method is None:
            return {"hallucinated": self.task.reader_error}
        made = self._measured[method] = self._make(method, self.samples)
        counts = [(len(judged.found), asked) for judged, asked in zip(made.judged, made.asked, strict=True)]
        return {
            "hallucinated": float(made.wrong.double().mean()),
            "unnamed": sum(found < asked for found, asked in counts) / len(counts),
            "too many": sum(found > asked for found, asked in counts) / len(counts),
            "auroc": auroc(made.scores, made.wrong),
            "auroc_running_variance": auroc(made.running_variance, made.wrong),
        }

    def picture(self) -> Image.Image:
        """The first samples of every method, those judged wrong in a red frame."""
        rows = {}
        for name, method in self.task.methods.items():
            made = self._measured.get(method) or self._make(method, self.task.shown)
            rows[name] = list(zip(made.images.numpy(), made.wrong.tolist(), strict=True))[: self.task.shown]
        return picture_rows(rows, columns=self.task.shown)

    def _make(self, method: Method, kept: int) -> _Made:
        budget = affordable(self.task.steps, kept, method, DETECTOR)
        drawn, steps = budget.samples, budget.steps
        first = PREVIEW_SEED + _SPACING * (self.seed + _FIRST)
        specs = [sample_spec(first + i, count=1 + i % 2) for i in range(drawn)]
        images, scores, running_variance = [], [], []
        with detecting(self.pipeline, method.amplification) as detector:
            prompts, seeds = [spec.caption for spec in specs], range(first, first + drawn)
            for batch in generate_batches(self.pipeline, prompts, seeds, Sampling(steps, batch_size=_BATCH)):
                images.append(batch)
                scores.append(detector.scores())
                running_variance.append(detector.scheduler.running_variance().cpu())
        best = keep_best(torch.cat(scores), (drawn - kept) / drawn)
        chosen = [specs[i] for i in best.tolist()]
        shown = torch.cat(images)[best]
        judged = judge(shown, chosen, load_classifier())
        asked = [len(spec.objects) for spec in chosen]
        return _Made(shown, asked, judged, torch.cat(scores)[best], torch.cat(running_variance)[best])


@cache
def _reader_error(read: int) -> float:
    return 1 - fraction(classified_right(load_classifier(), read, PREVIEW_SEED - _SPACING)).value
