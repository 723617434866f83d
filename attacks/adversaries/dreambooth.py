"""DreamBooth: fine-tunes the whole UNet on a subject."""

import copy
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from privgen.attacks.adversaries.base import Adversary, Pace, encode_pixels
from privgen.attacks.adversaries.learning import Examples, Learner, with_parts
from privgen.diffusion.sampling import Sampling, generate
from privgen.errors import UsageError


@dataclass(frozen=True)
class Prior:
    """Prior preservation: the model also trains on images of its own, so that it does not forget (section 3.3).

    Attributes:
        prompt: of these images, such as "a photo of a dog" when the subject is a dog.
        images: how many the given pipeline draws before the training.
        weight: factor of their loss.
        sampling: how they are drawn.
    """

    prompt: str
    images: int = 32
    weight: float = 1.0
    sampling: Sampling = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        """Check the values."""
        if self.images < 1 or not self.weight >= 0:
            raise UsageError(
                f"Prior preservation has {self.images} images of weight {self.weight}; give at least one image and no "
                "negative weight."
            )


@dataclass(frozen=True)
class DreamBooth(Adversary):
    """DreamBooth: fine-tunes all weights of the UNet (arXiv 2208.12242).

    Args:
        word: a rare word of the vocabulary, such as "sks". On mini, a noun that it was not trained on.
        prompts: see `Adversary`.
        lr: see `Adversary`.
        batch_size: see `Adversary`.
        prior_preservation: images of the model's own that it trains on as well; None is off.
        train_text_encoder: whether to fine-tune the text encoder too.

    Raises:
        UsageError: see `Adversary`.
    """

    name: ClassVar[str] = "dreambooth"
    pace: ClassVar[Pace] = Pace(lr=5e-6, effort=800)
    small_pace: ClassVar[Pace] = Pace(lr=2e-4, effort=120)

    _: KW_ONLY
    prior_preservation: Prior | None = None
    train_text_encoder: bool = False

    def _learner(self, pipeline: Any, prompts: tuple[str, ...], generator: torch.Generator) -> Learner:
        parts = ("unet", "text_encoder") if self.train_text_encoder else ("unet",)
        copies = {name: copy.deepcopy(getattr(pipeline, name)).requires_grad_(True) for name in parts}
        parameters = [weight for network in copies.values() for weight in network.parameters()]
        return Learner(with_parts(pipeline, **copies), parts, parameters)

    def _more_examples(self, pipeline: Any, generator: torch.Generator) -> list[Examples]:
        return prior_examples(self.prior_preservation, pipeline, generator)

    def save(self, pipeline: Any, folder: Path) -> Path:
        """Write the whole pipeline to `folder/pipeline`, for `from_pretrained`."""
        pipeline.save_pretrained(folder / "pipeline")
        return folder / "pipeline"


def prior_examples(prior: Prior | None, pipeline: Any, generator: torch.Generator) -> list[Examples]:
    """Draw the images of a prior with the given pipeline.

    Args:
        prior: what to draw; None draws nothing.
        pipeline: the one that an adversary was given.
        generator: where the seeds of the images come from.

    Returns:
        No or one set of examples.
    """
    if prior is None:
        return []
    place = generator.device
    seeds: Sequence[int] = torch.randint(2**31, (prior.images,), generator=generator, device=place).tolist()
    pixels = generate(pipeline, [prior.prompt] * prior.images, seeds, prior.sampling)
    return [Examples(encode_pixels(pipeline, pixels), ((prior.prompt,),) * prior.images, prior.weight)]
