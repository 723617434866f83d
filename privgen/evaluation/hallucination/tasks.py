"""Tasks of `evaluate hallucination` on images, shapes and chess boards; and all tasks by name."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from diffusers import DDPMScheduler
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d

from privgen.data.shapes import draw_shapes, sample_shapes
from privgen.evaluation.hallucination.chess_boards import draw_board, random_position
from privgen.evaluation.hallucination.chess_rules import count_moved_pieces, validate_boards
from privgen.evaluation.hallucination.methods import LOSSES, Denoise, SamplingMethod
from privgen.evaluation.hallucination.mixtures import Grid, Line
from privgen.evaluation.hallucination.pictures import mark_board, mark_shapes, picture_rows
from privgen.evaluation.hallucination.settings import (
    CHESS_DETECTOR,
    CHESS_METHODS,
    CHESS_OURS,
    SHAPES_DETECTOR,
    SHAPES_METHODS,
    SHAPES_OURS,
)
from privgen.evaluation.hallucination.task import SamplingTask
from privgen.evaluation.hallucination.train_pictures import (
    PictureTraining,
    build_picture_network,
    picture_scheduler,
    train_pictures,
    train_variance,
)
from privgen.hallucination.detector import HallucinationDetector
from privgen.metrics.features import coverage
from privgen.metrics.hallucination import Validation
from privgen.metrics.shapes import count_kinds, validate_shapes
from privgen.models.small_denoiser import SmallDenoiser


@dataclass(frozen=True)
class PictureTask(SamplingTask):
    """Images that a program draws and reads back.

    Attributes:
        training: of the networks.
        channels: of the images.
        columns: images in a row of the sheet of samples.
    """

    training: PictureTraining = field(default_factory=PictureTraining)
    channels: ClassVar[int]
    columns: ClassVar[int]

    @abstractmethod
    def picture(self, seed: int, index: int) -> NDArray[np.float32]:
        """One of a set, (C, H, W) in [0, 1]."""

    @abstractmethod
    def mark(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """The image in colour, (3, H, W) in [0, 1], with what is wrong outlined."""

    def trained_for(self, steps: int) -> Self:
        return replace(self, training=replace(self.training, steps=steps))

    def training_set(self, seed: int) -> Tensor:
        return self._images(self.training.training_samples, seed + 1_000_003)

    def held_out(self, n: int, seed: int) -> Tensor:
        return self._images(n, seed + 2_000_003)

    def build(self, loss: str, seed: int) -> nn.Module:
        return build_picture_network(self.channels, replace(self.training, variance=LOSSES[loss]), seed=seed)

    def train(self, data: Tensor, loss: str, seed: int, plain: Callable[[], nn.Module]) -> nn.Module:
        variance = LOSSES[loss]
        if variance is None:
            return train_pictures(data, self.training, seed=seed)
        finished = plain()
        assert isinstance(finished, SmallDenoiser)
        return train_variance(finished, data, replace(self.training, variance=variance), seed=seed)

    def scheduler(self) -> DDPMScheduler:
        return picture_scheduler()

    def denoiser(self, network: nn.Module) -> Denoise:
        reduced = self.training.dtype == "bfloat16"

        def denoise(x: Tensor, t: Tensor) -> Tensor:
            with torch.autocast(x.device.type, torch.bfloat16, enabled=reduced):
                output: Tensor = network(x, (t / 1000).expand(len(x)))
            return output.float()

        return denoise

    def cover(self, x: Tensor, held_out: Tensor) -> dict[str, float]:
        """The coverage of as many held-out images, at a quarter of their side; see `metrics.features.coverage`."""
        real, generated = (avg_pool2d(images, 4).flatten(1) for images in (held_out[: len(x)], x))
        return {"covered": coverage(real, generated)}

    def draw(self, samples: Mapping[str, Tensor]) -> Image.Image:
        rows = {}
        for name, x in samples.items():
            wrong = self.validate(x).hallucinated
            pixels = (x.nan_to_num() / 2 + 0.5).clamp(0, 1).numpy()
            rows[name] = [(self.mark(p), bool(w)) for p, w in zip(pixels, wrong, strict=True)]
        return picture_rows(rows, columns=self.columns)

    def _images(self, n: int, seed: int) -> Tensor:
        return 2 * torch.from_numpy(np.stack([self.picture(seed, i) for i in range(n)])) - 1


@dataclass(frozen=True)
class Shapes(PictureTask):
    """Images of at most one triangle, square and pentagon; see `privgen.data.shapes`."""

    methods: Mapping[str, SamplingMethod] = field(default_factory=lambda: dict(SHAPES_METHODS))
    ours: Mapping[str, str] = field(default_factory=lambda: dict(SHAPES_OURS))
    detector: HallucinationDetector = SHAPES_DETECTOR
    training: PictureTraining = field(default_factory=lambda: PictureTraining(steps=600))
    name: ClassVar[str] = "shapes"
    shown: ClassVar[int] = 16
    channels: ClassVar[int] = 1
    columns: ClassVar[int] = 16

    def picture(self, seed: int, index: int) -> NDArray[np.float32]:
        return draw_shapes(sample_shapes(seed, index))

    def validate(self, x: Tensor) -> Validation:
        return validate_shapes(x / 2 + 0.5)

    def content(self, x: Tensor) -> Tensor:
        """How many kinds of shapes each image shows."""
        return count_kinds(x / 2 + 0.5)

    def mark(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return mark_shapes(pixels)


@dataclass(frozen=True)
class Chess(PictureTask):
    """Images of chess boards after some random legal moves; see `chess_boards` and `chess_rules` beside this file.

    Attributes:
        max_plies: most moves of both sides together.
    """

    methods: Mapping[str, SamplingMethod] = field(default_factory=lambda: dict(CHESS_METHODS))
    ours: Mapping[str, str] = field(default_factory=lambda: dict(CHESS_OURS))
    detector: HallucinationDetector = CHESS_DETECTOR
    training: PictureTraining = field(
        default_factory=lambda: PictureTraining(patch=16, steps=600, training_samples=2000)
    )
    max_plies: int = 20
    name: ClassVar[str] = "chess"
    shown: ClassVar[int] = 8
    channels: ClassVar[int] = 3
    columns: ClassVar[int] = 8
    chunk: ClassVar[int] = 50

    def picture(self, seed: int, index: int) -> NDArray[np.float32]:
        return draw_board(random_position(seed, index, max_plies=self.max_plies).board)

    def data_settings(self) -> dict[str, Any]:
        return {"max_plies": self.max_plies}

    def validate(self, x: Tensor) -> Validation:
        return validate_boards(x / 2 + 0.5)

    def content(self, x: Tensor) -> Tensor:
        """How many pieces have left the square on which a game starts them."""
        return count_moved_pieces(x / 2 + 0.5)

    def mark(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        return mark_board(pixels)


TASKS: Mapping[str, type[Line] | type[Grid] | type[Shapes] | type[Chess]] = {
    task.name: task for task in (Line, Grid, Shapes, Chess)
}
"""All tasks with networks of their own, by name."""
