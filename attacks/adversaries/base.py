"""What every adversary is: a frozen value that learns a subject from images, and gives a pipeline that draws it."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from privgen.attacks.adversaries.images import squares
from privgen.attacks.adversaries.learning import Examples, Learner, Optimisation, check_pipeline, train
from privgen.data.scenes import COLOURS
from privgen.diffusion.latents import encode
from privgen.errors import UsageError
from privgen.models.family import Canvas


SMALL = 100_000_000
"""Models with fewer weights than this are small: they learn best with higher rates and fewer steps."""

PHOTO_PROMPTS = ("a photo of a {word}",)
"""What images are said to show, for models that know photographs."""

SCENE_PROMPTS = tuple(f"a {{word}} on a{'n' if c[0] in 'aeiou' else ''} {c} background" for c in COLOURS)
"""What images are said to show, for models whose captions are those of scenes."""


@dataclass(frozen=True)
class Pace:
    """How an adversary learns where the caller does not say.

    Attributes:
        lr: learning rate.
        effort: training steps.
    """

    lr: float
    effort: int


@dataclass(frozen=True)
class Adversary(ABC):
    """A method that learns a subject from images. Protection is tested with it.

    Subclasses are frozen dataclasses and write `_learner` and `save`.

    Args:
        word: the word that stands for the subject in prompts.
        prompts: what images are said to show, with "{word}" in each; one is drawn whenever an image is learnt. By
            default `PHOTO_PROMPTS`; or, for models that know the words of scenes only, that of `SCENE_PROMPTS` which
            names the colour of the image's border.
        lr: learning rate; None is `pace` or `small_pace`.
        batch_size: images a training step.

    Raises:
        UsageError: a value is outside its range, or a prompt lacks the word.
    """

    name: ClassVar[str]
    """Name in the registry."""
    pace: ClassVar[Pace]
    """Learning rate and steps for models like Stable Diffusion."""
    small_pace: ClassVar[Pace]
    """Learning rate and steps for small models such as mini."""

    word: str
    _: KW_ONLY
    prompts: tuple[str, ...] = ()
    lr: float | None = None
    batch_size: int = 4

    def __post_init__(self) -> None:
        """Check the values."""
        if not self.word.strip() or "{" in self.word or "}" in self.word:
            raise UsageError(f"{self.word!r} cannot stand for a subject; give a word without braces.")
        if bad := [prompt for prompt in self.prompts if "{word}" not in prompt]:
            raise UsageError(f'The prompt "{bad[0]}" does not name the subject; write {{word}} where it stands.')
        if self.lr is not None and not 0 < self.lr < float("inf"):
            raise UsageError(f"The learning rate is {self.lr}; give a number above 0.")
        if self.batch_size < 1:
            raise UsageError(f"The batch size is {self.batch_size}; give at least 1.")

    @final
    def fit(
        self,
        pipeline: Any,
        images: Sequence[Tensor],
        effort: int | None = None,
        *,
        generator: torch.Generator,
        progress: bool = False,
    ) -> Any:
        """Learn the subject of some images.

        Args:
            pipeline: a text-to-image pipeline like Stable Diffusion 1 and 2. It is not changed.
            images: (3, H, W) each, in [0, 1], of any size. They are resized to the model's size and cut to squares.
            effort: training steps; None is that of `pace` or `small_pace`.
            generator: where all randomness comes from.
            progress: whether to show a progress bar on standard error.

        Returns:
            A new pipeline that draws the subject for prompts with `word`. It shares all that was not learnt with the
            given one.

        Raises:
            UsageError: the pipeline is of another family, or images or effort are of no use.
            PrivgenError: the loss is not finite; or a package that the adversary needs is missing.
        """
        effort = self.pace_for(pipeline).effort if effort is None else effort
        stages = self.fit_at(pipeline, images, (effort,), generator=generator, progress=progress)
        return next(iter(stages))[1]

    @final
    def fit_at(
        self,
        pipeline: Any,
        images: Sequence[Tensor],
        efforts: Sequence[int],
        *,
        generator: torch.Generator,
        progress: bool = False,
    ) -> Iterator[tuple[int, Any]]:
        """Learn the subject of some images in one training run, and stop at several efforts.

        Args:
            pipeline: see `fit`.
            images: see `fit`.
            efforts: numbers of training steps, in rising order. At 0 nothing has been learnt.
            generator: where all randomness comes from.
            progress: whether to show a progress bar on standard error.

        Yields:
            (effort, pipeline), once for each effort. A pipeline stays as it is while training goes on, and is the one
            that `fit` gives for that effort.

        Raises:
            UsageError: see `fit`.
            PrivgenError: see `fit`.
        """
        steps = tuple(efforts)
        if not steps or list(steps) != sorted({*steps}) or steps[0] < 0:
            raise UsageError(f"The efforts are {list(steps)}; give numbers of steps, at least 0, in rising order.")
        check_pipeline(pipeline)
        lr = self.pace_for(pipeline).lr if self.lr is None else self.lr
        how = Optimisation(steps, lr, self.batch_size, progress)
        pixels = squares(images, Canvas.of_pipeline(pipeline).size)
        prompts = self.prompts_for(pipeline)
        scenes = not self.prompts and _knows_scenes_only(pipeline.tokenizer)
        fitting = [(prompts[nearest_colour(image)],) if scenes else prompts for image in pixels]
        examples = Examples(encode_pixels(pipeline, pixels), tuple(fitting))
        more = self._more_examples(pipeline, generator)
        learner = self._learner(pipeline, prompts, generator)
        return train(learner, [examples, *more], how, generator)

    def pace_for(self, pipeline: Any) -> Pace:
        """Learning rate and steps for a pipeline: those of its size.

        Raises:
            UsageError: the pipeline is of another family.
        """
        check_pipeline(pipeline)
        weights = sum(weight.numel() for weight in pipeline.unet.parameters())
        return self.small_pace if weights < SMALL else self.pace

    def prompts_for(self, pipeline: Any) -> tuple[str, ...]:
        """The prompts of the training, with the word in its place."""
        templates = self.prompts or (SCENE_PROMPTS if _knows_scenes_only(pipeline.tokenizer) else PHOTO_PROMPTS)
        return tuple(template.replace("{word}", self.word) for template in templates)

    @abstractmethod
    def save(self, pipeline: Any, folder: Path) -> Path:
        """Write what was learnt, in a form that Diffusers loads.

        Args:
            pipeline: that `fit` returned.
            folder: to write to; it is made.

        Returns:
            The file or folder that was written.
        """

    @abstractmethod
    def _learner(self, pipeline: Any, prompts: tuple[str, ...], generator: torch.Generator) -> Learner:
        """The pipeline in training, for the prompts of the training."""

    def _more_examples(self, pipeline: Any, generator: torch.Generator) -> list[Examples]:
        """Further examples, that are not of the subject."""
        return []


def _knows_scenes_only(tokenizer: Any) -> bool:
    photo, background = (len(tokenizer.tokenize(word)) == 1 for word in ("photo", "background"))
    return background and not photo


def nearest_colour(pixels: Tensor) -> int:
    """The place in `COLOURS` of the colour that is nearest to the mean of an image's border.

    Args:
        pixels: (3, H, W) in [0, 1].
    """
    border = torch.cat([pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]], 1).mean(1)
    distances = (torch.tensor(list(COLOURS.values())) / 255 - border).norm(dim=1)
    return int(distances.argmin())


def encode_pixels(pipeline: Any, pixels: Tensor) -> Tensor:
    """Encode images one by one.

    Args:
        pipeline: with the autoencoder.
        pixels: (B, 3, H, W) in [0, 1].

    Returns:
        (B, C, h, w) float32 scaled latents, on the CPU.
    """
    with torch.no_grad():
        return torch.cat([encode(pipeline.vae, image[None]).cpu() for image in pixels])
