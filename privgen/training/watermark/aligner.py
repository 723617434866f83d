"""Training of the aligner, which reads marks in images that were cut out or turned.

Marked images are cut out or turned, distorted, and put back to their places on the canvas, and the aligner's encoder
learns to read them there. Training reads as if the content of images were independent from place to place. That costs
little more than the encoder itself, and the encoder learns to make it so. At the end, patterns and covariance are
measured with the encoder as it has become.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from privgen.data.photos import load_photos
from privgen.io.fingerprints import weights_fingerprint
from privgen.io.progress import Bar
from privgen.io.residual import at_psnr
from privgen.models.aligner import Aligner, read_independent, seen_cells
from privgen.models.extractor import Extractor
from privgen.models.mappers import LatentMapper
from privgen.training.distortions import training_distortion
from privgen.training.loop import Batch, Task, sample_generator
from privgen.training.watermark.aligner_fit import View, fit_aligner
from privgen.training.watermark.mark_cache import Source, by_tokens, generated, load_or_make_bank, photographs, scenes
from privgen.training.watermark.mark_preview import rows_of_marks
from privgen.training.watermark.token_writer import TokenWriter
from privgen.watermark.read.pose import Poses, put_back, take


_FIRST_VIEW = 10**9  # the first of the samples that training does not draw
_VERSION = 1  # of how banks of marks are made
_WHOLE_VIEWS = 4  # one in so many batches of views shows whole images, so that the rim of the canvas is seen


@dataclass(frozen=True)
class AlignerRecipe:
    """An aligner and its training.

    Attributes:
        vae: folder of the frozen autoencoder.
        photos: folder of photographs.
        start: folder with a `latent_mapper`, and with an `aligner` to go on from, or an `extractor` whose encoder to
            start from.
        model: folder of a text-to-image model with a token mapper, which generates images and writes marks with
            tokens.
        marks: file that keeps images and their marks; made if it is missing.
        counts: how many images there are of each source: generated, scenes, photographs, and generated ones that
            tokens mark.
        fractions: how much of a batch comes from each source, in the same order; the sum is 1.
        psnr: of marked images, in dB.
        whole_fraction: fraction of the images that are neither cut out nor turned.
        distorted_fraction: fraction of the images that one of the distortions changes.
        distortions: names of attacks, see `privgen.training.distortions`.
        distortion_scale: fraction of the full strength of the distortions, in [0, 1].
        views: number of marked images from which patterns and covariance are measured.
    """

    vae: Path
    photos: Path
    start: Path
    model: Path
    marks: Path
    counts: tuple[int, ...] = (1280, 1504, 3008, 640)
    fractions: tuple[float, ...] = (0.4, 0.15, 0.3, 0.15)
    psnr: float = 38.1
    whole_fraction: float = 0.1
    distorted_fraction: float = 0.5
    distortions: tuple[str, ...] = ()
    distortion_scale: float = 1.0
    views: int = 6144


class AlignerTask(Task):
    """Trains by the binary cross-entropy of messages, read from images that are put back not quite to their places."""

    def __init__(self, recipe: AlignerRecipe, seed: int) -> None:
        super().__init__()
        self.recipe, self.seed = recipe, seed
        self.attack = training_distortion(recipe.distortions, recipe.distortion_scale)
        self.mapper = LatentMapper.from_pretrained(
            recipe.start / "latent_mapper", use_safetensors=True
        ).requires_grad_(False)
        self.bank = load_or_make_bank(recipe.marks, self._fingerprint(), self._sources)
        aligner = self._start()
        # With wrong guesses of the place, patterns that are trained would drift.
        aligner.patterns.requires_grad_(False)
        self.aligner = aligner.train().to(memory_format=torch.channels_last)
        self.mean = nn.Parameter(aligner.mean.clone())
        self.log_variance = nn.Parameter(aligner.covariance.diagonal().log())

    def _start(self) -> Aligner:
        """The aligner to go on from, or one with the encoder of an extractor."""
        start = self.recipe.start
        if (start / "aligner").is_dir():
            return Aligner.from_pretrained(start / "aligner", use_safetensors=True)
        aligner = Aligner.from_extractor(Extractor.from_pretrained(start / "extractor", use_safetensors=True))
        fit_aligner(aligner, self._views())
        return aligner

    def _fingerprint(self) -> str:
        """A digest of all that the bank of marks depends on."""
        recipe = self.recipe
        writers = nn.ModuleList(
            [self.mapper, AutoencoderKL.from_pretrained(recipe.vae, use_safetensors=True), TokenWriter(recipe.model)]
        )
        photos = sorted(path.name for path in recipe.photos.iterdir())
        return weights_fingerprint(writers, [_VERSION, self.seed, *recipe.counts, photos])

    def _sources(self) -> Mapping[str, tuple[int, Source]]:
        """The sources of images with marks, and how many images to make of each."""
        recipe, mapper, seed = self.recipe, self.mapper, self.seed
        vae = AutoencoderKL.from_pretrained(recipe.vae, use_safetensors=True).to(memory_format=torch.channels_last)
        writer = TokenWriter(recipe.model)
        images = writer.unmarked(max(recipe.counts[0], recipe.counts[3]), seed)
        made = {
            "generated": generated(vae, mapper, images, seed),
            "scenes": scenes(vae, mapper, seed),
            "photographs": photographs(vae, mapper, load_photos(recipe.photos), seed),
            "tokens": by_tokens(writer, images, mapper.config.n_bits, seed),
        }
        return {name: (count, make) for count, (name, make) in zip(recipe.counts, made.items(), strict=True)}

    def batch(self, indices: list[int]) -> Batch:
        rngs = [np.random.Generator(np.random.PCG64([self.seed, 1, i])) for i in indices]
        limits = np.cumsum(self.recipe.fractions)[:-1]
        source = [int((rng.random() >= limits).sum()) for rng in rngs]
        images, changes, bits = (torch.stack(part) for part in zip(*map(self.bank.draw, source, rngs), strict=True))
        poses = torch.stack([self._pose(rng) for rng in rngs])
        return {
            "pixels": images,
            "change": changes,
            "bits": bits,
            "source": torch.tensor(source),
            "pose": poses[:, 0],
            "guess": poses[:, 1],
            "distorted": torch.tensor([rng.random() < self.recipe.distorted_fraction for rng in rngs]),
            "index": torch.tensor(indices),
        }

    def _marked(self, images: Tensor, change: Tensor) -> Tensor:
        """Marked images, at the quality of the recipe."""
        return at_psnr(images, change, torch.full((len(images),), self.recipe.psnr, device=images.device))

    def _pose(self, rng: np.random.Generator) -> Tensor:
        """Where an image comes from, and a guess that is wrong by a random fraction of `draw_pose`'s; (2, 4)."""
        if rng.random() < self.recipe.whole_fraction:
            return Poses.of().values.repeat(2, 1)
        true, guess = draw_pose(rng)
        return torch.stack([true, true + rng.random() * (guess - true)])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        marked, distorted = self._marked(batch["pixels"], batch["change"]), batch["distorted"]
        shown = take(marked, Poses(batch["pose"]))
        if self.attack is not None and bool(distorted.any()):
            generators = [sample_generator(self.seed, int(i)) for i in batch["index"][distorted]]
            shown = shown.index_put((distorted,), self.attack(shown[distorted], generator=generators))
        canvases, seen = put_back(shown, Poses(batch["guess"]))
        latents = self.aligner.encode(canvases.contiguous(memory_format=torch.channels_last))
        cells = seen_cells(seen, (latents.shape[2], latents.shape[3]))
        aligner, variance = self.aligner, self.log_variance.exp()
        temperature = aligner.log_temperature.exp()
        logits = read_independent(latents[:, None], cells, aligner.patterns, self.mean, variance, temperature)[:, 0]
        target = batch["bits"].to(logits)
        right = ((logits > 0) == (target > 0.5)).float().mean(dim=1)
        return {"loss": F.binary_cross_entropy_with_logits(logits, target), "bit_accuracy": right.mean()}

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Draw images, the same images with marks, and ten times the difference."""
        batch = self.batch(list(range(8)))
        return rows_of_marks(batch["pixels"], self._marked(batch["pixels"], batch["change"]))

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Measure patterns and content with the trained encoder, and save the aligner."""
        fit_aligner(self.aligner, self._views())
        self.aligner.to(memory_format=torch.contiguous_format).save_pretrained(folder / "aligner")

    def _views(self, batch_size: int = 16) -> Iterator[View]:
        """Parts of marked images without distortions. Marks of tokens, like the others but noisier, are left out."""
        for start in Bar(range(0, self.recipe.views, batch_size), "patterns", unit="batch"):
            batch = self.batch(list(range(_FIRST_VIEW + start, _FIRST_VIEW + start + batch_size)))
            poses = Poses(batch["pose"])
            if start // batch_size % _WHOLE_VIEWS == 0:
                poses = Poses.of().expand(batch_size)
            rows = batch["source"] < len(self.recipe.counts) - 1
            poses, images, change = Poses(poses.values[rows]), batch["pixels"][rows], batch["change"][rows]
            canvases, seen = put_back(take(self._marked(images, change), poses), poses)
            opposite, _ = put_back(take(self._marked(images, -change), poses), poses)
            yield View(canvases, opposite, seen, batch["bits"][rows])


def draw_pose(rng: np.random.Generator) -> Tensor:
    """Draw how an image was cut out of another, turned or both, and a guess of it that is not quite right.

    A guess is off by as much as the best of a search, whose grid has steps of 1/32 of the canvas and of 5 degrees.

    Args:
        rng: source of randomness.

    Returns:
        (2, 4), the pose and the guess, each as in `privgen.watermark.read.pose.Poses`.
    """
    true = _pose(rng)
    error = rng.uniform(-1, 1, 4) * [0.02, 0.016, 0.016, 2.5]
    # If the side of the window is wrong, its middle stays where it is.
    error[1:3] -= error[0] / 2
    return torch.tensor(np.stack([true, true + error]), dtype=torch.float32)


def _pose(rng: np.random.Generator) -> NDArray[np.float64]:
    """One time in four the whole image is turned, one time in four a window, and else a window that is not turned."""
    kind, degrees = rng.random(), rng.uniform(-45, 45)
    if kind < 0.25:
        return np.array([1.0, 0.0, 0.0, degrees])
    side = rng.uniform(0.45, 1) ** 0.5
    return np.array([side, *rng.uniform(0, 1 - side, 2), degrees if kind < 0.5 else 0.0])
