"""The training sets of `evaluate training`, and the fixed networks that judge samples."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import cross_entropy

from privgen.data.fashion import load_fashion
from privgen.data.scenes import NOUNS, PREVIEW_SEED, draw, sample_spec
from privgen.diffusion.latents import decode, encode
from privgen.io.fingerprints import settings_fingerprint, tensor_fingerprint, weights_fingerprint
from privgen.io.pixels import resize
from privgen.io.progress import Bar
from privgen.io.tensor_cache import load_or_make
from privgen.metrics.features import Projection, coverage, fit_projection, frechet_distance
from privgen.metrics.scenes import load_classifier
from privgen.models.classifier import SceneClassifier
from privgen.models.initialise import seeded_weights
from privgen.models.small_denoiser import GarmentClassifier
from privgen.training.scene_latents import scene_seed


DIMENSIONS = 64
"""How many principal components of the features are compared."""
SCENE_SIDE = 64
"""Side of the scenes in pixels, which gives latents of 8 x 8. The shipped classifier finds every object in them, also
after the autoencoder."""

Look = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From samples (B, ...) to features (B, F) and predicted classes (B,)."""


@dataclass(frozen=True, eq=False)
class Judge:
    """A fixed network that compares samples with held-out data by their features.

    Attributes:
        name: of the network, for reports.
        look: the network.
        projection: of its features on the principal components of the held-out data.
        reference: projected features of the held-out data, (M, d).
    """

    name: str
    look: Look = field(repr=False)
    projection: Projection = field(repr=False)
    reference: Tensor = field(repr=False)

    @classmethod
    def fit(cls, name: str, look: Look, features: Tensor, dimensions: int = DIMENSIONS) -> "Judge":
        """Make a judge from the features of held-out data, (M, F)."""
        projection = fit_projection(features, dimensions)
        return cls(name, look, projection, projection(features))

    def measure(self, samples: Tensor, labels: Tensor | None) -> dict[str, float]:
        """Judge samples.

        Args:
            samples: (B, C, H, W), like the training data.
            labels: the classes that the samples should show, (B,); None without classes.

        Returns:
            "fd" (Frechet distance to the held-out data), "coverage" (of as many held-out samples), and with labels
            "accuracy" (fraction of samples in which the network sees the right class).
        """
        parts = [self.look(chunk) for chunk in samples.split(128)]
        projected = self.projection(torch.cat([features for features, _ in parts]).cpu())
        found = {
            "fd": frechet_distance(projected, self.reference),
            "coverage": coverage(self.reference[: len(projected)], projected),
        }
        if labels is not None:
            predicted = torch.cat([classes for _, classes in parts]).cpu()
            found["accuracy"] = float((predicted == labels.cpu()).double().mean())
        return found


@dataclass(frozen=True, eq=False)
class TrainingData:
    """A training set and its judge.

    Attributes:
        name: of the set.
        x_0: (N, C, H, W), float32, of about unit scale.
        labels: classes that a model is conditioned on, (N,) int64; None trains without.
        classes: how many there are; 0 without.
        patch: of the `SmallDenoiser` that learns the set.
        judge: judges samples of the model.
        identity: digest of all of this.
    """

    name: str
    x_0: Tensor = field(repr=False)
    labels: Tensor | None = field(repr=False)
    classes: int
    patch: int
    judge: Judge
    identity: str


def fashion_data(
    folder: Path | None, cache: Path | None, *, device: torch.device, classifier_steps: int = 600
) -> TrainingData:
    """Fashion-MNIST in pixels, without labels. A small classifier judges; it is trained here from a fixed seed.

    Args:
        folder: of the files; see `load_fashion`.
        cache: folder in which the classifier is kept; None keeps nothing.
        device: of the classifier.
        classifier_steps: training steps of the classifier, 256 images each.

    Raises:
        PrivgenError: the files are missing, or the classifier cannot be written.
    """
    train, test = load_fashion("train", folder), load_fashion("test", folder)
    x_0, held_out = (part.images.float() / 127.5 - 1 for part in (train, test))
    identity = settings_fingerprint(tensor_fingerprint(train.images, test.images), classifier_steps)
    network = GarmentClassifier()
    path = None if cache is None else cache / "fashion-classifier.safetensors"
    weights = load_or_make(
        path,
        identity,
        lambda: train_garment_classifier(x_0, train.labels, steps=classifier_steps).state_dict(),
        "the classifier of garments",
        replace=True,
    )
    network.load_state_dict(weights)
    network.eval().requires_grad_(False).to(device)

    def look(images: Tensor) -> tuple[Tensor, Tensor]:
        # Held-out images have 256 levels, so samples are rounded to these.
        rounded = ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
        with torch.inference_mode():
            features = network.features(rounded.to(device))
            return features, network.head(features).argmax(1)

    parts = [look(chunk) for chunk in held_out.split(500)]
    features, predicted = (torch.cat(tensors).cpu() for tensors in zip(*parts, strict=True))
    accuracy = float((predicted == test.labels).double().mean())
    name = (
        f"GarmentClassifier, trained from seed 0 for {classifier_steps} steps, right on {accuracy:.1%} of the test set"
    )
    return TrainingData("fashion", x_0, None, 0, 4, Judge.fit(name, look, features), identity)


def train_garment_classifier(images: Tensor, labels: Tensor, *, steps: int) -> GarmentClassifier:
    """Train the classifier of garments from seed 0.

    Args:
        images: (N, 1, 28, 28) in [-1, 1].
        labels: (N,), int64.
        steps: optimiser steps, 256 images each.
    """
    with seeded_weights(0):
        network = GarmentClassifier()
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in Bar(range(steps), "classifier of garments", unit="step"):
        rows = torch.randint(len(images), (256,), generator=generator)
        loss = cross_entropy(network(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return network


def scene_data(
    cache: Path | None, *, device: torch.device, scenes: int = 8192, held_out: int = 2048, batch_size: int = 64
) -> TrainingData:
    """Latents of plain scenes with one object each, which is their label. The shipped classifier of scenes judges.

    Args:
        cache: folder in which latents and features are kept; None keeps nothing.
        device: of the autoencoder and the classifier.
        scenes: how many to learn from.
        held_out: how many to compare with, also after the autoencoder.
        batch_size: scenes that are encoded at a time.

    Raises:
        PrivgenError: the classifier or the autoencoder is missing, or the cache cannot be written.
    """
    with as_file(files("privgen") / "models" / "mini" / "vae") as folder:
        vae = AutoencoderKL.from_pretrained(folder, use_safetensors=True).requires_grad_(False).eval()
    vae.to(device, memory_format=torch.channels_last)
    classifier = load_classifier().requires_grad_(False).to(device)
    identity = weights_fingerprint(vae, [[SCENE_SIDE, scenes, held_out], weights_fingerprint(classifier)])
    kept = load_or_make(
        None if cache is None else cache / "scenes.safetensors",
        identity,
        lambda: _encode_scenes(vae, classifier, scenes, held_out, batch_size),
        "latents of scenes",
        replace=True,
    )
    std = float(kept["latents"].std())

    def look(samples: Tensor) -> tuple[Tensor, Tensor]:
        return _look_at_latents(vae, classifier, std * samples)

    name = "SceneClassifier that ships with mini, on pictures decoded by mini's autoencoder"
    judge = Judge.fit(name, look, kept["features"])
    return TrainingData("scenes", kept["latents"] / std, kept["labels"], len(NOUNS), 1, judge, identity)


@torch.inference_mode()
def _encode_scenes(
    vae: AutoencoderKL, classifier: SceneClassifier, scenes: int, held_out: int, batch_size: int
) -> dict[str, Tensor]:
    seeds = [scene_seed(0, i) for i in range(scenes)] + [PREVIEW_SEED + i for i in range(held_out)]
    latents, labels = [], []
    for first in Bar(range(0, len(seeds), batch_size), "encoding scenes", unit="batch"):
        chosen = seeds[first : first + batch_size]
        specs = [sample_spec(seed, count=1, patterned=False, textured=False) for seed in chosen]
        latents.append(encode(vae, torch.from_numpy(np.stack([draw(spec, SCENE_SIDE).pixels for spec in specs]))))
        labels += [NOUNS.index(spec.objects[0].noun) for spec in specs]
    z = torch.cat(latents)
    chunks: Bar[Tensor] = Bar(z[scenes:].split(batch_size), "features of scenes", unit="batch")
    features = [_look_at_latents(vae, classifier, chunk)[0].cpu() for chunk in chunks]
    return {"latents": z[:scenes].cpu(), "labels": torch.tensor(labels[:scenes]), "features": torch.cat(features)}


@torch.inference_mode()
def _look_at_latents(vae: AutoencoderKL, classifier: SceneClassifier, latents: Tensor) -> tuple[Tensor, Tensor]:
    """The input of the classifier's last layer and the most probable noun, for latents (B, C, h, w)."""
    images = decode(vae, latents.to(vae.device).contiguous(memory_format=torch.channels_last)).clamp(0, 1)
    side = classifier.config["sample_size"]
    features: list[Tensor] = []
    hook = classifier.head.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    try:
        output = classifier(resize(images, (side, side)).clamp(0, 1))
    finally:
        hook.remove()
    return features[0], output.nouns.argmax(1)
