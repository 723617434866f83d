"""Detect hallucinations in any pipeline: the network is called once more for a finished batch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import Tensor, nn

from privgen.errors import UsageError
from privgen.hallucination.amplification import Amplification
from privgen.hallucination.detector import HallucinationDetector
from privgen.hallucination.running_variance import WATCHED
from privgen.hallucination.scheduler import AmplifiedScheduler, amplified


DETECTOR = HallucinationDetector((800,))
"""Default detector. At timestep 800 a network decides what an image shows; this was chosen on shapes and scenes."""


class PipelineDetector:
    """Scores the batch that a pipeline has just made. `detecting` makes it.

    The network is called with the conditions of its last call, which include the prompt. With classifier-free guidance
    these are the second half of the conditions.

    Args:
        pipeline: pipeline whose network is called.
        scheduler: scheduler of the pipeline.
        detector: computes scores from the network's predictions.

    Raises:
        UsageError: the scheduler does not have DDPM's noise schedule.
    """

    def __init__(
        self, pipeline: DiffusionPipeline, scheduler: AmplifiedScheduler, detector: HallucinationDetector
    ) -> None:
        if not hasattr(scheduler, "alphas_cumprod"):
            raise UsageError(
                f"{type(scheduler.scheduler).__name__} has no noise schedule of DDPM, which the detector of "
                "hallucinations needs; take a model that was trained with one, such as Stable Diffusion."
            )
        self.scheduler, self.detector = scheduler, detector
        self.network: nn.Module = getattr(pipeline, "unet", None) or pipeline.transformer
        self._training = DDIMScheduler.from_config(scheduler.scheduler.config)
        self._call: Call | None = None
        self._asking = False

    def note(self, network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Remember a call of the network. This is a forward pre-hook."""
        if not self._asking:
            self._call = Call(args, dict(kwargs))

    @torch.no_grad()
    def scores(self) -> Tensor:
        """Return a score for each image of the batch, (B,). High scores hint at hallucinations.

        Raises:
            UsageError: the pipeline has not made a batch yet.
        """
        made, call = self.scheduler.last_sample, self._call
        if made is None or call is None:
            raise UsageError("There are no images to score yet; call the pipeline first.")
        dtype = next(self.network.parameters()).dtype

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            args, kwargs = call.with_inputs(x.to(dtype), t.to(x.device))
            output: Tensor = self.network(*args, **{**kwargs, "return_dict": False})[0]
            return output.float()

        self._asking = True
        try:
            return self.detector.scores(denoise, self._training, made.float()).cpu()
        finally:
            self._asking = False


@dataclass(frozen=True)
class Call:
    """A call of a denoising network, whose first inputs are a sample (rows, ...) and a timestep."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def with_inputs(self, x: Tensor, t: Tensor) -> tuple[list[Any], dict[str, Any]]:
        """Return the call's arguments for its last rows, with another sample and timestep."""
        rows = len(self.args[0] if self.args else self.kwargs[_sample_name(self.kwargs)])
        chosen = slice(rows - len(x), rows)
        args = [_rows(value, chosen, rows) for value in self.args]
        kwargs = {name: _rows(value, chosen, rows) for name, value in self.kwargs.items()}
        args[:2] = [x, t][: len(args)]
        if not args:
            kwargs[_sample_name(kwargs)] = x
        if len(args) < 2:
            was = kwargs["timestep"]
            kwargs["timestep"] = t.expand(len(x)) if isinstance(was, Tensor) and was.ndim else t
        return args, kwargs


def _sample_name(kwargs: Mapping[str, Any]) -> str:
    return "sample" if "sample" in kwargs else "hidden_states"


@contextmanager
def detecting(
    pipeline: DiffusionPipeline,
    amplification: Amplification | None = None,
    *,
    detector: HallucinationDetector = DETECTOR,
) -> Iterator[PipelineDetector]:
    """Watch a pipeline, so that its batches can be scored. At the end the pipeline is restored.

    Args:
        pipeline: any pipeline with one scheduler, and a network that is its `unet` or `transformer`.
        amplification: how to change the score while the pipeline samples; None leaves it as it is.
        detector: computes scores from the network's predictions.

    Yields:
        A detector. Its `scores` are those of the latest batch.

    Raises:
        UsageError: see `PipelineDetector`.
    """
    with amplified(pipeline, amplification, watch=WATCHED) as scheduler:
        found = PipelineDetector(pipeline, scheduler, detector)
        hook = found.network.register_forward_pre_hook(found.note, with_kwargs=True)
        try:
            yield found
        finally:
            hook.remove()


def _rows(value: Any, chosen: slice, of: int) -> Any:
    """Return some rows of a condition, which may be nested or None."""
    if isinstance(value, Tensor):
        return value[chosen] if value.ndim and len(value) == of else value
    if isinstance(value, Mapping):
        return {name: _rows(part, chosen, of) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rows(part, chosen, of) for part in value]
    return value
