"""Measure hallucinations of the shipped text-to-image model, on scenes that a classifier reads."""

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
from privgen.evaluation.hallucination.methods import SamplingMethod, affordable
from privgen.evaluation.hallucination.pictures import picture_rows
from privgen.evaluation.hallucination.settings import LOW
from privgen.evaluation.intervals import fraction
from privgen.hallucination.amplification import Amplification
from privgen.hub import load_pipeline
from privgen.metrics.hallucination import auroc, keep_best
from privgen.metrics.scenes import SceneJudgement, classified_right, judge, load_classifier
from privgen.pipelines.detecting import DETECTOR, detecting


SCENE_METHODS: Mapping[str, SamplingMethod] = {
    "plain": SamplingMethod("ddim"),
    "gamma 1.2 below 400": SamplingMethod("ddim", amplification=Amplification(1.2, window=LOW)),
    "reject 0.2": SamplingMethod("ddim", reject=0.2),
}
"""The others are compared with the first."""
_BATCH = 20
_FIRST, _SPACING = 300, 1_000_000  # of the scenes' seeds, so that `evaluate model` has other scenes


@dataclass(frozen=True)
class Scenes:
    """Scenes by mini. One is hallucinated unless the classifier finds exactly the objects in its prompt.

    Attributes:
        methods: of sampling, by name; the first is the baseline.
        ours: "sampling" names the method whose results the summary reports.
        steps: denoising steps; each is one network call on a batch of two, for classifier-free guidance.
        read: how many drawn scenes measure the classifier's own error.
        shown: how many images of each method the sheet shows.
    """

    methods: Mapping[str, SamplingMethod] = field(default_factory=lambda: dict(SCENE_METHODS))
    ours: Mapping[str, str] = field(default_factory=lambda: {"sampling": "reject 0.2"})
    steps: int = 25
    read: int = 500
    shown: int = 12
    family: ClassVar[str] = "scenes"

    @property
    def name(self) -> str:
        """The name of the task, with its steps."""
        return f"{self.family}-{self.steps}"

    @property
    def reader_error(self) -> float:
        """Fraction of drawn scenes in which the classifier does not find exactly the objects that are there."""
        return _reader_error(self.read)


@dataclass(frozen=True)
class _SampledScenes:
    """Images (N, 3, H, W), how many objects each prompt names, the classifier's judgement, detector scores (N,)."""

    images: Tensor
    asked: list[int]
    judged: list[SceneJudgement]
    scores: Tensor
    running_variance: Tensor

    @property
    def wrong(self) -> Tensor:
        """Which images are hallucinated, (N,) bool."""
        return torch.tensor([not found.exact for found in self.judged])


class SceneRun:
    """The scenes of one seed.

    Args:
        task: what is measured.
        seed: of prompts and noise.
        samples: that each method keeps.
    """

    def __init__(self, task: Scenes, seed: int, *, samples: int) -> None:
        self.task, self.seed, self.samples = task, seed, samples
        self._measured: dict[SamplingMethod, _SampledScenes] = {}

    @cached_property
    def pipeline(self) -> DiffusionPipeline:
        """The shipped model."""
        return load_pipeline()

    def figures(self, method: SamplingMethod | None) -> dict[str, float]:
        """Measure a method; None measures the classifier's error on drawn scenes."""
        if method is None:
            return {"hallucinated": self.task.reader_error}
        sampled = self._measured[method] = self._sample(method, self.samples)
        counts = [(len(judged.found), asked) for judged, asked in zip(sampled.judged, sampled.asked, strict=True)]
        return {
            "hallucinated": float(sampled.wrong.double().mean()),
            "unnamed": sum(found < asked for found, asked in counts) / len(counts),
            "too many": sum(found > asked for found, asked in counts) / len(counts),
            "auroc": auroc(sampled.scores, sampled.wrong),
            "auroc_running_variance": auroc(sampled.running_variance, sampled.wrong),
        }

    def picture(self) -> Image.Image:
        """A sheet of the first samples of every method, hallucinated ones in a red frame."""
        rows = {}
        for name, method in self.task.methods.items():
            sampled = self._measured.get(method) or self._sample(method, self.task.shown)
            rows[name] = list(zip(sampled.images.numpy(), sampled.wrong.tolist(), strict=True))[: self.task.shown]
        return picture_rows(rows, columns=self.task.shown)

    def _sample(self, method: SamplingMethod, kept: int) -> _SampledScenes:
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
        kept_images = torch.cat(images)[best]
        return _SampledScenes(
            kept_images,
            [len(spec.objects) for spec in chosen],
            judge(kept_images, chosen, load_classifier()),
            torch.cat(scores)[best],
            torch.cat(running_variance)[best],
        )


@cache
def _reader_error(read: int) -> float:
    return 1 - fraction(classified_right(load_classifier(), read, PREVIEW_SEED - _SPACING)).value
