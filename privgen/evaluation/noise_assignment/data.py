"""What the small models of `evaluate training` learn, and the fixed networks by which their samples are judged."""

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.resources import as_file, files
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from privgen.data.fashion import load_fashion
from privgen.data.scenes import NOUNS, PREVIEW_SEED, draw, sample_spec
from privgen.io.fingerprints import settings_fingerprint, tensor_fingerprint, weights_fingerprint
from privgen.io.pixels import resize
from privgen.io.tensor_cache import load_or_make
from privgen.metrics.features import Projection, coverage, fit_projection, frechet_distance
from privgen.metrics.scenes import load_classifier
from privgen.models.classifier import SceneClassifier
from privgen.models.small_denoiser import GarmentClassifier
from privgen.training.scene_latents import scene_seed


DIMENSIONS = 64
"""Of the features that are compared."""
SCENE_SIDE = 64
"""Pixels: latents of 8 x 8. The shipped classifier finds every object in such scenes, also decoded."""

Judge = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From samples (B, ...) to features (B, F) and predicted classes (B,)."""


@dataclass(frozen=True)
class TrainingData:
    """A training set and its judge.

    Attributes:
        name: of the set.
        x_0: (N, C, H, W), float32, of about unit scale.
        labels: (N,), int64, what a model is conditioned on; None trains without.
        classes: how many labels there are; 0 without.
        patch: of the `SmallDenoiser` for it.
        judge: the fixed network.
        network: what it is, for reports.
        projection: of its features.
        reference: (M, d), projected features of held-out data.
        identity: digest of all of this.
    """

    name: str
    x_0: Tensor = field(repr=False)
    labels: Tensor | None = field(repr=False)
    classes: int
    patch: int
    judge: Judge = field(repr=False)
    network: str
    projection: Projection = field(repr=False)
    reference: Tensor = field(repr=False)
    identity: str

    def measure(self, samples: Tensor, labels: Tensor | None) -> dict[str, float]:
        """Judge samples.

        Args:
            samples: (B, C, H, W), as `x_0`.
            labels: (B,), what was asked for.

        Returns:
            "fd" (Frechet distance to the held-out data), "coverage" (of as many held-out samples), and with labels
            "accuracy" (share in which the judge sees what was asked for).
        """
        parts = [self.judge(chunk) for chunk in samples.split(128)]
        seen = self.projection(torch.cat([features for features, _ in parts]).cpu())
        found = {
            "fd": frechet_distance(seen, self.reference),
            "coverage": coverage(self.reference[: len(seen)], seen),
        }
        if labels is not None:
            said = torch.cat([predicted for _, predicted in parts]).cpu()
            found["accuracy"] = float((said == labels.cpu()).double().mean())
        return found


def fashion_data(
    folder: Path | None, cache: Path | None, *, device: torch.device, classifier_steps: int = 600
) -> TrainingData:
    """Fashion-MNIST in pixels, without labels, judged by a small classifier that is trained here from a fixed seed.

    Args:
        folder: see `load_fashion`.
        cache: folder in which the classifier is kept; None keeps nothing.
        device: of the classifier.
        classifier_steps: of its training, 256 pictures each.

    Raises:
        PrivgenError: the set is missing, or the classifier cannot be written.
    """
    train, test = load_fashion("train", folder), load_fashion("test", folder)
    x_0, held_out = (part.images.float() / 127.5 - 1 for part in (train, test))
    identity = settings_fingerprint(tensor_fingerprint(train.images, test.images), classifier_steps)
    network = GarmentClassifier()

    def trained() -> dict[str, Tensor]:
        train_garments(network, x_0, train.labels, steps=classifier_steps)
        return network.state_dict()

    path = None if cache is None else cache / "fashion-classifier.safetensors"
    network.load_state_dict(load_or_make(path, identity, trained, "the classifier of garments", replace=True))
    network.eval().requires_grad_(False).to(device)

    def judge(images: Tensor) -> tuple[Tensor, Tensor]:
        # Held-out pictures are whole numbers between black and white, and so are those that are judged.
        rounded = ((images.clamp(-1, 1) + 1) * 127.5).round() / 127.5 - 1
        with torch.inference_mode():
            features = network.features(rounded.to(device))
            return features, network.head(features).argmax(1)

    parts = [judge(chunk) for chunk in held_out.split(500)]
    features = torch.cat([f for f, _ in parts]).cpu()
    right = float((torch.cat([p for _, p in parts]).cpu() == test.labels).double().mean())
    projection = fit_projection(features, DIMENSIONS)
    said = f"GarmentClassifier, trained from seed 0 for {classifier_steps} steps, right on {right:.1%} of the test set"
    return TrainingData("fashion", x_0, None, 0, 4, judge, said, projection, projection(features), identity)


def train_garments(network: GarmentClassifier, images: Tensor, labels: Tensor, *, steps: int) -> None:
    """Train the classifier from seed 0, in place.

    Args:
        network: to be trained; its weights are drawn anew.
        images: (N, 1, 28, 28) in [-1, 1].
        labels: (N,), int64.
        steps: of 256 pictures.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)  # noqa: TID251 - layers are initialised from the global generator only
        network.load_state_dict(GarmentClassifier().state_dict())
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(steps), "classifier of garments", unit="step"):
        rows = torch.randint(len(images), (256,), generator=generator)
        loss = cross_entropy(network(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()


def scene_data(
    cache: Path | None, *, device: torch.device, scenes: int = 8192, held_out: int = 2048, batch_size: int = 64
) -> TrainingData:
    """Latents of plain scenes with one object, conditioned on which, judged by the classifier of scenes that ships.

    Args:
        cache: folder in which latents and features are kept; None keeps nothing.
        device: of the autoencoder and the classifier.
        scenes: to learn from.
        held_out: to compare with, through the autoencoder as well.
        batch_size: scenes encoded at once.

    Raises:
        PrivgenError: the classifier or autoencoder is missing, or the cache cannot be written.
    """
    with as_file(files("privgen") / "models" / "mini" / "vae") as folder:
        vae = AutoencoderKL.from_pretrained(folder).requires_grad_(False).eval()
    vae.to(device, memory_format=torch.channels_last)
    classifier = load_classifier().requires_grad_(False).to(device)
    settings = [SCENE_SIDE, scenes, held_out]
    identity = weights_fingerprint(vae, [settings, weights_fingerprint(classifier)])
    path = None if cache is None else cache / "scenes.safetensors"
    kept = load_or_make(
        path,
        identity,
        lambda: _encode_scenes(vae, classifier, scenes, held_out, batch_size),
        "latents of scenes",
        replace=True,
    )
    scale = float(kept["latents"].std())
    projection = fit_projection(kept["features"], DIMENSIONS)

    def judge(samples: Tensor) -> tuple[Tensor, Tensor]:
        return _judge_latents(vae, classifier, scale * samples)

    said = "SceneClassifier that ships with mini, on pictures decoded by mini's autoencoder"
    x_0, labels = kept["latents"] / scale, kept["labels"]
    reference = projection(kept["features"])
    return TrainingData("scenes", x_0, labels, len(NOUNS), 1, judge, said, projection, reference, identity)


@torch.inference_mode()
def _encode_scenes(
    vae: AutoencoderKL, classifier: SceneClassifier, scenes: int, held_out: int, batch_size: int
) -> dict[str, Tensor]:
    seeds = [scene_seed(0, i) for i in range(scenes)] + [PREVIEW_SEED + i for i in range(held_out)]
    latents, labels = [], []
    for first in tqdm(range(0, len(seeds), batch_size), "encoding scenes", unit="batch"):
        chosen = seeds[first : first + batch_size]
        specs = [sample_spec(seed, count=1, patterned=False, textured=False) for seed in chosen]
        pixels = torch.from_numpy(np.stack([draw(spec, SCENE_SIDE).pixels for spec in specs])).to(vae.device)
        latents.append(vae.encode(2 * pixels - 1).latent_dist.mean)
        labels += [NOUNS.index(spec.objects[0].noun) for spec in specs]
    z = torch.cat(latents)
    chunks = tqdm(z[scenes:].split(batch_size), "features of scenes", unit="batch")
    features = [_judge_latents(vae, classifier, chunk)[0].cpu() for chunk in chunks]
    rows = z[:scenes].cpu().contiguous()
    return {"latents": rows, "labels": torch.tensor(labels[:scenes]), "features": torch.cat(features)}


@torch.inference_mode()
def _judge_latents(vae: AutoencoderKL, classifier: SceneClassifier, latents: Tensor) -> tuple[Tensor, Tensor]:
    """What the classifier's last layer sees of latents (B, C, h, w), and the surest noun."""
    z = latents.to(vae.device).contiguous(memory_format=torch.channels_last)
    images = (vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    side = classifier.config["sample_size"]
    seen: list[Tensor] = []
    hook = classifier.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        said = classifier(resize(images, (side, side)).clamp(0, 1))
    finally:
        hook.remove()
    return seen[0], said.nouns.argmax(1)
