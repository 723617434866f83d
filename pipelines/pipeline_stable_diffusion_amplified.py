"""Stable Diffusion with score amplification, which hallucinates less and tells how uncertain each image was."""

import inspect
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import PIL.Image
import torch
from diffusers import StableDiffusionPipeline
from diffusers.utils import BaseOutput
from numpy.typing import NDArray
from torch import Tensor

from privgen.hallucination.amplification import Amplification, Window
from privgen.hallucination.scheduler import amplified


_PLAIN = inspect.signature(StableDiffusionPipeline.__call__)
_PLAIN_EXTRAS = frozenset({"callback", "callback_steps"})


@dataclass
class StableDiffusionAmplifiedPipelineOutput(BaseOutput):
    """Generated images, and how much the predictions changed while each was made.

    Attributes:
        images: as Stable Diffusion returns them: B Pillow images, or an array or tensor for other output types.
        nsfw_content_detected: for each image whether the safety checker found it unsafe; None without a checker.
        running_variance: (B,), for each image the variance of its predicted latents over the watched steps. High
            values hint at hallucinations. None if no steps were watched.
    """

    images: list[PIL.Image.Image] | NDArray[np.generic] | Tensor
    nsfw_content_detected: list[bool] | None
    running_variance: Tensor | None = None


class StableDiffusionAmplifiedPipeline(StableDiffusionPipeline):
    """Stable Diffusion 1 or 2, or mini, with score amplification (arXiv 2606.00377, arXiv 2510.04533).

    It has the components of `StableDiffusionPipeline` and is saved as one. During a call it uses an amplified copy of
    its scheduler. For other pipelines use `privgen.hallucination.scheduler.amplified`, which does the same.

        pipe = load_pipeline("mini", pipeline_class=StableDiffusionAmplifiedPipeline)
        output = pipe("a cat", amplification=Amplification(gamma=1.3, window=(0, 100)), watch=(0, 400))
        output.images[0], output.running_variance[0]
    """

    @torch.no_grad()
    def __call__(
        self,
        *args: Any,
        amplification: Amplification | None = None,
        watch: Window | None = None,
        **kwargs: Any,
    ) -> "StableDiffusionAmplifiedPipelineOutput | tuple[Any, ...]":
        """Generate images. Without `amplification` they equal those of `StableDiffusionPipeline` bit for bit.

        Args:
            *args: positional arguments of `StableDiffusionPipeline`.
            amplification: how to change the score; None leaves it as it is.
            watch: lowest and highest timestep, of 1000, of the predictions in `running_variance`.
            **kwargs: keyword arguments of `StableDiffusionPipeline`.

        Returns:
            The output; if `return_dict` is False, the tuple of its three fields.

        Raises:
            TypeError: an argument is unknown. (`StableDiffusionPipeline` ignores unknown arguments.)
            UsageError: the scheduler cannot be amplified, the gate needs a learned variance that the network does not
                have, or fewer than two steps are watched.
        """
        bound = _PLAIN.bind(self, *args, **kwargs)
        if unknown := sorted(set(bound.arguments.get("kwargs", {})) - _PLAIN_EXTRAS):
            raise TypeError(f"unexpected arguments: {', '.join(unknown)}")
        bound.arguments.pop("self")
        call = {**bound.arguments, **bound.arguments.pop("kwargs", {})}
        return_dict = call.pop("return_dict", True)
        with amplified(self, amplification, watch=watch) as scheduler:
            images, unsafe = super().__call__(**call, return_dict=False)
            variance = None if watch is None else scheduler.running_variance()
        output = (images, unsafe, variance)
        return StableDiffusionAmplifiedPipelineOutput(*output) if return_dict else output

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Save as a `StableDiffusionPipeline`."""
        needed = {"requires_safety_checker": self.config.requires_safety_checker}
        StableDiffusionPipeline(**self.components, **needed).save_pretrained(save_directory, **kwargs)
