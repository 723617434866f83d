"""Training of the classifier that judges generated scenes."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from privgen.data.flaws import blur, spoil, warp
from privgen.data.patterns import PATTERNS
from privgen.data.scenes import COLOURS, NOUNS, PREVIEW_SEED, SIZE, SceneSpec, draw, draw_scene
from privgen.data.sheets import contact_sheet, picture
from privgen.diffusion.latents import decode, encode
from privgen.errors import UsageError
from privgen.metrics.scenes import judge
from privgen.models.classifier import SceneClassifier
from privgen.models.initialise import seeded_weights
from privgen.training.loop import Batch, Task


@dataclass(frozen=True)
class ClassifierRecipe:
    """A classifier, and the flaws of the pictures that it is trained on.

    Attributes:
        size: side of the pictures in pixels.
        channels: of the network's levels.
        spoilt: fraction of the objects that are drawn as blobs, which do not count as objects.
        empty: fraction of the scenes that have no objects.
        bend: RMS of smooth distortions where they are strongest, in pixels.
        shift: largest displacement of the picture, in pixels.
        zoom: largest change of its size, as a fraction.
        gain: largest change of contrast, as a fraction, and of brightness, for pixel values in [0, 1].
        blur: largest standard deviation of a Gaussian blur, in pixels.
        noise: largest standard deviation of white noise, for pixel values in [0, 1].
        vae_fraction: fraction of the pictures that go through an autoencoder.
        vae: folder of that autoencoder.
    """

    size: int = SIZE
    channels: tuple[int, ...] = (32, 64, 128)
    spoilt: float = 0.15
    empty: float = 0.04
    bend: float = 2.0
    shift: float = 5.0
    zoom: float = 0.1
    gain: float = 0.08
    blur: float = 1.2
    noise: float = 0.04
    vae_fraction: float = 0.0
    vae: Path | None = None


class ClassifierTask(Task):
    """Trains by the binary cross-entropy of each object, and the cross-entropies of background colour and pattern."""

    def __init__(self, recipe: ClassifierRecipe, seed: int) -> None:
        super().__init__()
        self.recipe, self.seed = recipe, seed
        with seeded_weights(seed):
            classifier = SceneClassifier(recipe.channels, recipe.size)
        self.classifier = classifier.to(memory_format=torch.channels_last)
        self.vae: AutoencoderKL | None = None
        if recipe.vae_fraction > 0:
            if recipe.vae is None:
                raise UsageError(
                    f"classifier.vae_fraction is {recipe.vae_fraction:g}, but classifier.vae names no autoencoder; "
                    "set it to the folder of one."
                )
            self.vae = AutoencoderKL.from_pretrained(recipe.vae, use_safetensors=True).requires_grad_(False)

    def batch(self, indices: list[int]) -> Batch:
        samples = [self._sample(index) for index in indices]
        batch = {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}
        x = warp(batch["pixels"], batch.pop("bend"), zoom=batch.pop("zoom"), shift=batch.pop("shift"))
        gain = batch.pop("gain")[:, :, None, None, None]
        x = blur(x * (1 + gain[:, 0]) + gain[:, 1], batch.pop("blur")) + batch.pop("noise")
        batch["pixels"] = x.clamp(0, 1).contiguous(memory_format=torch.channels_last)
        return batch

    def _sample(self, index: int) -> dict[str, NDArray[np.generic]]:
        """A picture, what it shows, and the flaws that it will get."""
        recipe = self.recipe
        rng = np.random.Generator(np.random.PCG64([self.seed, index]))
        scene = draw_scene(int(rng.integers(PREVIEW_SEED)), size=recipe.size)
        if rng.random() < recipe.empty:
            scene = draw(replace(scene.spec, objects=()), recipe.size)
        lost = [i for i in range(len(scene.spec.objects)) if rng.random() < recipe.spoilt]
        # Squared, so that many pictures are nearly clean.
        strength = np.float32(rng.random() ** 2)
        noise = rng.standard_normal(scene.pixels.shape, dtype=np.float32)
        return {
            "pixels": spoil(scene, lost, rng) if lost else scene.pixels,
            **_labels(scene.spec, lost),
            "bend": recipe.bend * strength * rng.standard_normal((2, 6, 6), dtype=np.float32),
            "zoom": np.asarray(strength * rng.uniform(-recipe.zoom, recipe.zoom), np.float32),
            "shift": strength * rng.uniform(-recipe.shift, recipe.shift, 2).astype(np.float32),
            "gain": strength * rng.uniform(-recipe.gain, recipe.gain, 2).astype(np.float32),
            "blur": np.asarray(strength * recipe.blur, np.float32),
            "noise": strength * np.float32(rng.uniform(0, recipe.noise)) * noise,
            "decoded": np.asarray(rng.random() < recipe.vae_fraction),
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        said, there = self.classifier(self.seen(batch)), batch["nouns"]
        objects = nn.functional.binary_cross_entropy_with_logits(said.nouns, there, reduction="none").sum(1).mean()
        colour = nn.functional.cross_entropy(said.colour, batch["colour"])
        pattern = nn.functional.cross_entropy(said.pattern, batch["pattern"])
        return {
            "loss": objects + colour + pattern,
            "objects_right": ((said.nouns > 0) == (there > 0)).all(1).float().mean(),
            "colour_right": (said.colour.argmax(1) == batch["colour"]).float().mean(),
            "pattern_right": (said.pattern.argmax(1) == batch["pattern"]).float().mean(),
        }

    @torch.no_grad()
    def seen(self, batch: Batch) -> Tensor:
        """The pictures of a batch, some of which have gone through the autoencoder; (B, 3, size, size) in [0, 1]."""
        pixels, chosen = batch["pixels"], batch["decoded"]
        if self.vae is None or not bool(chosen.any()):
            return pixels
        decoded = pixels.clone()
        decoded[chosen] = decode(self.vae, encode(self.vae, pixels[chosen])).clamp(0, 1)
        return decoded

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Draw scenes with what the classifier says about them; every other one has a spoilt object."""
        scenes = [draw_scene(PREVIEW_SEED + i, size=self.recipe.size) for i in range(16)]
        rng = np.random.Generator(np.random.PCG64(0))
        drawn = [spoil(scene, [0], rng) if i % 2 else scene.pixels for i, scene in enumerate(scenes)]
        said = judge(torch.from_numpy(np.stack(drawn)), [scene.spec for scene in scenes], self.classifier)
        return contact_sheet([picture(pixels) for pixels in drawn], [str(one) for one in said], 8)

    def export(self, folder: Path) -> None:
        """Save the classifier."""
        self.classifier.to(memory_format=torch.contiguous_format).save_pretrained(folder / "classifier")


def _labels(spec: SceneSpec, lost: list[int]) -> dict[str, NDArray[np.generic]]:
    """What the classifier should say: the objects that are not lost, background colour and pattern."""
    nouns = np.zeros(len(NOUNS), np.float32)
    nouns[[NOUNS.index(placed.noun) for i, placed in enumerate(spec.objects) if i not in lost]] = 1
    pattern = PATTERNS.index(spec.pattern) if spec.pattern else len(PATTERNS)
    return {"nouns": nouns, "colour": np.asarray(list(COLOURS).index(spec.colour)), "pattern": np.asarray(pattern)}
