"""What `evaluate hallucination` measures on: data with a validator, and small networks that learn them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn

from privgen.evaluation.hallucination.methods import Denoise, Method
from privgen.hallucination.detector import HallucinationDetector
from privgen.metrics.hallucination import Validation


@dataclass(frozen=True)
class SamplingTask(ABC):
    """Data, how they are learnt, and what is wrong with samples.

    Attributes:
        methods: of sampling, by name; the first of each sampler is its baseline.
        ours: names of the methods that stand for this package: "sampling" changes nothing but the sampling,
            "trained" also has a learned variance, "vsm" is the published loss.
        detector: of hallucinations.
        name: of the task.
        shown: samples in a picture, of each method.
        chunk: samples that are drawn at a time; of many more, tensors are so large that memory is given back and asked
            for at every step.
    """

    methods: Mapping[str, Method]
    ours: Mapping[str, str]
    detector: HallucinationDetector
    name: ClassVar[str]
    shown: ClassVar[int]
    chunk: ClassVar[int] = 250

    @abstractmethod
    def training_set(self, seed: int) -> Tensor:
        """What networks are trained on, (N, ...)."""

    @abstractmethod
    def held_out(self, n: int, seed: int) -> Tensor:
        """Other data, (n, ...)."""

    @property
    def reader_error(self) -> float:
        """Share of real data that the validator takes for hallucinated."""
        return self.validate(self.held_out(2, 0)).reader_error

    @abstractmethod
    def trained_for(self, steps: int) -> Self:
        """The same with another number of training steps."""

    def data_settings(self) -> dict[str, Any]:
        """All that the data depend on but the seed."""
        return {}

    @abstractmethod
    def build(self, loss: str, seed: int) -> nn.Module:
        """The untrained network for one of `LOSSES`."""

    @abstractmethod
    def train(self, data: Tensor, loss: str, seed: int, plain: Callable[[], nn.Module]) -> nn.Module:
        """A network that has learnt; `plain` gives the one of the loss "simple", of the same data and seed."""

    @abstractmethod
    def scheduler(self) -> DDPMScheduler:
        """Of the training."""

    @abstractmethod
    def denoiser(self, network: nn.Module) -> Denoise:
        """A network as samplers call it."""

    @abstractmethod
    def validate(self, x: Tensor) -> Validation:
        """Which samples, (B, ...), are hallucinated."""

    @abstractmethod
    def cover(self, x: Tensor, held_out: Tensor) -> dict[str, float]:
        """How much of the data samples cover; the same names for any samples, "covered" among them."""

    def content(self, x: Tensor) -> Tensor | None:
        """How much there is in each sample that could be wrong, (B,) whole numbers from 0; None if always as much."""
        return None

    @abstractmethod
    def draw(self, samples: Mapping[str, Tensor]) -> Image.Image:
        """A picture of samples, by method, with what is wrong marked."""
