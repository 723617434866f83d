"""Stable Diffusion that hallucinates less, and says which images wavered."""

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
    """Images and how much their predictions wavered.

    Attributes:
        images: as Stable Diffusion returns them: B Pillow images, or an array or tensor for other output types.
        nsfw_content_detected: for each image whether the safety checker found it unsafe; None without a checker.
        running_variance: for each image the variance of its predicted latents over the watched steps, (B,); high
            values tell of hallucinations. None when nothing was watched.
    """

    images: list[PIL.Image.Image] | NDArray[np.generic] | Tensor
    nsfw_content_detected: list[bool] | None
    running_variance: Tensor | None = None


class StableDiffusionAmplifiedPipeline(StableDiffusionPipeline):
    """Stable Diffusion 1 or 2, or mini, with score amplification (arXiv 2606.00377, arXiv 2510.04533).

    It has the components of `StableDiffusionPipeline` and is saved as one. Each call lends it an amplified copy of its
    scheduler; with any other pipeline, `privgen.hallucination.scheduler.amplified` does the same.

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
        """Generate images; without `amplification` bit for bit those of `StableDiffusionPipeline`.

        Args:
            *args: what `StableDiffusionPipeline` takes.
            amplification: what to do to the score.
            watch: lowest and highest timestep, of 1000, whose predictions count for `running_variance`.
            **kwargs: what `StableDiffusionPipeline` takes by name.

        Returns:
            The output, or with `return_dict=False` the tuple of its three fields.

        Raises:
            TypeError: an argument that neither this class nor Stable Diffusion knows; the latter ignores them.
            UsageError: a scheduler that cannot be amplified, a gate for which the network says too little, or fewer
                than two watched steps.
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
