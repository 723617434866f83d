"""Judges how much of a subject images show, in a way that noise does not fool.

A linear probe on the features of a network tells clean pictures of the subject from other pictures. It is trained on
pictures with and without noise, blur and JPEG, so that none of these is evidence for or against the subject.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from privgen.attacks.distortions.degradation import JPEG, gaussian_blur
from privgen.data.photos import load_photos, random_crop
from privgen.data.scenes import HELDOUT_NOUNS, NOUNS
from privgen.evaluation.protection.subjects import Subject, scenes
from privgen.evaluation.text_to_image.autoencoder import heldout_photos
from privgen.io.pixels import resize
from privgen.metrics.mobilenet import mobilenet_features, mobilenet_installed
from privgen.metrics.scenes import load_classifier


SPOILT = ("plain", "white noise", "coloured noise", "blur", "jpeg")
"""The forms in which the probe sees each picture."""

WEIGHT_DECAY = 0.01
"""Of the probe, so that probabilities of pictures that it does not know are not all 0 or 1."""


@dataclass(frozen=True)
class Features:
    """What the probe looks at.

    Attributes:
        name: of the network: "mobilenet", or "classifier" for the classifier of scenes that ships with mini, where the
            weights of MobileNetV2 are not installed. The classifier is of little use for photographs.
        of: maps (N, 3, H, W) in [0, 1] to (N, D).
    """

    name: str
    of: Callable[[Tensor], Tensor] = field(repr=False)


def best_features() -> Features:
    """The features of MobileNetV2 if its weights are installed, else of the classifier of scenes."""
    return Features("mobilenet", mobilenet_features) if mobilenet_installed() else classifier_features()


def classifier_features() -> Features:
    """The features of the classifier of scenes that ships with mini."""
    network = load_classifier()

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        side = network.config.sample_size
        return torch.cat([network.features(resize(batch, (side, side)).clamp(0, 1)) for batch in images.split(16)])

    return Features("classifier", features)


@dataclass(frozen=True)
class Verdict:
    """What the judge says about some images.

    Attributes:
        score: mean probability that an image shows the subject.
        similarity: mean cosine of the features of the images and the mean feature of clean pictures of the subject.
    """

    score: float
    similarity: float


@dataclass(frozen=True)
class Judge:
    """A linear probe for one subject.

    Attributes:
        features: what it looks at.
        mean: (D,) of the features in training.
        spread: (D,) their standard deviation.
        weight: (D,), of the standardised features.
        bias: of the logit.
        subject: (D,) mean feature of clean pictures of the subject.
    """

    features: Features
    mean: Tensor = field(repr=False)
    spread: Tensor = field(repr=False)
    weight: Tensor = field(repr=False)
    bias: float
    subject: Tensor = field(repr=False)

    def probabilities(self, images: Tensor) -> Tensor:
        """The probability that each image shows the subject, (N,).

        Args:
            images: (N, 3, H, W) in [0, 1].
        """
        return self._probabilities(self.features.of(images))

    def judge(self, images: Tensor) -> Verdict:
        """Judge images (N, 3, H, W) in [0, 1]."""
        features = self.features.of(images)
        similarity = F.cosine_similarity(features, self.subject[None]).mean()
        return Verdict(float(self._probabilities(features).mean()), float(similarity))

    def _probabilities(self, features: Tensor) -> Tensor:
        return torch.sigmoid((features - self.mean) / self.spread @ self.weight + self.bias)


def train_judge(subject: Subject, drawn: Tensor, features: Features, *, count: int = 24, seed: int = 0) -> Judge:
    """Train the probe of a subject.

    Args:
        subject: to recognise.
        drawn: (N, 3, side, side) images of the unpersonalised model, for the prompts with which the adversary will
            draw the subject. They count as other pictures.
        features: what the probe looks at.
        count: clean pictures of the subject, and as many of other things: other scenes, or packaged photographs.
        seed: of noise and other distortions.
    """
    generator = torch.Generator().manual_seed(seed)
    side = drawn.shape[-1]
    shown = subject.shown(count, side)
    others = torch.cat([_others(subject, count, side, generator), drawn])
    positive, negative = (
        torch.cat([features.of(images) for images in spoilt(pictures, generator)]) for pictures in (shown, others)
    )
    x = torch.cat([positive, negative])
    mean, spread = x.mean(0), x.std(0).clamp(min=1e-6)
    weight, bias = _fit(((positive - mean) / spread), (negative - mean) / spread)
    return Judge(features, mean, spread, weight, bias, features.of(shown).mean(0))


def _others(subject: Subject, count: int, side: int, generator: torch.Generator) -> Tensor:
    """Pictures of other things, of the kind that the subject's are: scenes, or photographs."""
    if not subject.noun:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        photos = load_photos(heldout_photos().with_name("train"))
        return torch.stack([torch.from_numpy(random_crop(photos, side, rng)) for _ in range(count)])
    nouns = [noun for noun in (*NOUNS, *HELDOUT_NOUNS) if noun != subject.noun]
    chosen = torch.randperm(len(nouns), generator=generator)[:count].tolist()
    return torch.cat([scenes(nouns[i], 1, side, first=2_000_010_000 + i) for i in chosen])


def spoilt(images: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """The images in each form of `SPOILT`.

    Args:
        images: (N, 3, H, W) in [0, 1].
        generator: draws the noise and the strengths.
    """
    side, count = images.shape[-1], len(images)

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator))

    yield images
    yield (images + uniform(0.05, 0.15) * torch.randn(images.shape, generator=generator)).clamp(0, 1)
    coarse = torch.randn((count, 3, max(side // 8, 2), max(side // 8, 2)), generator=generator)
    clouds = resize(coarse, images.shape[-2:])
    yield (images + uniform(0.05, 0.15) * clouds / clouds.std()).clamp(0, 1)
    yield gaussian_blur(images, uniform(0.5, 1.5) * side / 128).clamp(0, 1)
    yield JPEG(round(uniform(30, 80)))(images)


def _fit(positive: Tensor, negative: Tensor) -> tuple[Tensor, float]:
    """Logistic regression with weight decay; both classes count alike."""
    x = torch.cat([positive, negative]).double()
    target = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).double()
    parts = [torch.full((len(group),), 0.5 / len(group)) for group in (positive, negative)]
    importance = torch.cat(parts).double()
    weight = torch.zeros(x.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([weight, bias], max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimiser.zero_grad()
        errors = F.binary_cross_entropy_with_logits(x @ weight + bias, target, reduction="none")
        total = (importance * errors).sum() + WEIGHT_DECAY * weight.square().sum()
        total.backward()
        return total

    with torch.enable_grad():
        optimiser.step(loss)
    return weight.detach().float(), float(bias.detach())
