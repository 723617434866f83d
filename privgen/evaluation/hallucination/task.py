"""The interface of a task of `evaluate hallucination`: data with a validator, and small networks that learn them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from diffusers import DDPMScheduler
from PIL import Image
from torch import Tensor, nn

from privgen.evaluation.hallucination.methods import Denoise, SamplingMethod, TrainedModel
from privgen.hallucination.detector import HallucinationDetector
from privgen.metrics.hallucination import Validation


@dataclass(frozen=True)
class SamplingTask(ABC):
    """Data, the networks that learn them, and the rules that tell hallucinated samples.

    Attributes:
        methods: of sampling, by name; the first of each sampler is its baseline.
        ours: the methods whose results the summary reports: "sampling" changes nothing but the sampling, "trained"
            also has a learned variance, "vsm" is the published loss.
        detector: of hallucinations.
        name: of the task.
        shown: how many samples of each method a sheet shows.
        chunk: how many samples are drawn at a time. With many more, every step allocates large tensors anew.
    """

    methods: Mapping[str, SamplingMethod]
    ours: Mapping[str, str]
    detector: HallucinationDetector
    name: ClassVar[str]
    shown: ClassVar[int]
    chunk: ClassVar[int] = 250

    @abstractmethod
    def training_set(self, seed: int) -> Tensor:
        """The data that networks are trained on, (N, ...)."""

    @abstractmethod
    def held_out(self, n: int, seed: int) -> Tensor:
        """Data that no network has seen, (n, ...)."""

    @property
    def reader_error(self) -> float:
        """Fraction of real data that the validator takes for hallucinated."""
        return self.validate(self.held_out(2, 0)).reader_error

    @abstractmethod
    def trained_for(self, steps: int) -> Self:
        """The same task with another number of training steps."""

    def data_settings(self) -> dict[str, Any]:
        """Everything that the data depend on, except the seed."""
        return {}

    @abstractmethod
    def build(self, loss: str, seed: int) -> nn.Module:
        """An untrained network for one of `LOSSES`."""

    @abstractmethod
    def train(self, data: Tensor, loss: str, seed: int, plain: Callable[[], nn.Module]) -> nn.Module:
        """Train a network for one of `LOSSES`; `plain` gives that of the loss "simple", of the same data and seed."""

    @abstractmethod
    def scheduler(self) -> DDPMScheduler:
        """The scheduler of the training."""

    @abstractmethod
    def denoiser(self, network: nn.Module) -> Denoise:
        """A network, wrapped as samplers call it."""

    def model(self, network: nn.Module) -> TrainedModel:
        """A network with the scheduler of its training and the detector."""
        return TrainedModel(self.denoiser(network), self.scheduler(), self.detector)

    @abstractmethod
    def validate(self, x: Tensor) -> Validation:
        """Find the hallucinated samples among (B, ...)."""

    @abstractmethod
    def cover(self, x: Tensor, held_out: Tensor) -> dict[str, float]:
        """How much of the data the samples cover. The names are the same for any samples, "covered" among them."""

    def content(self, x: Tensor) -> Tensor | None:
        """How much there is in each sample that could be wrong, (B,) whole numbers; None if it is always the same."""
        return None

    @abstractmethod
    def draw(self, samples: Mapping[str, Tensor]) -> Image.Image:
        """A sheet of the samples of each method, with what is wrong marked."""
