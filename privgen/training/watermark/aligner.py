"""Training of the aligner's encoder: to read marks in images that were cut out or turned, put back to their places.

What is trained reads content as independent from place to place, which costs little more than the encoder, and by
which the encoder learns to make it so. At the end patterns and covariance are measured anew, of what it has become.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from privgen.data.photos import load_photos
from privgen.io.fingerprints import weights_fingerprint
from privgen.models.aligner import Aligner, read_independent, seen_cells
from privgen.models.extractor import Extractor
from privgen.models.mappers import LatentMapper
from privgen.training.loop import Batch, Task, sample_generator
from privgen.training.recipes import Distort
from privgen.training.watermark.aligner_fit import View, fit_aligner
from privgen.training.watermark.mark_cache import Source, by_tokens, generated, load_or_make_bank, photographs, scenes
from privgen.training.watermark.mark_writers import TokenWriter, draw_pose, rows_of_marks
from privgen.watermark.read.pose import Poses, put_back, take
from privgen.watermark.write.residual import at_psnr


_VERSION = 1  # of how banks are made
_WHOLE_VIEWS = 4  # of so many batches of views one shows images whole, for what lies at the rim


@dataclass(frozen=True)
class AlignerRecipe:
    """An aligner and its training.

    Attributes:
        vae: folder of the frozen autoencoder.
        photos: folder of photographs.
        start: folder with a `latent_mapper`, and an `aligner` to train further or an `extractor` whose encoder is
            taken.
        model: folder of a text-to-image model with a token mapper: it generates images, and tokens write marks.
        marks: file of marked images; made when it is missing.
        counts: how many of them are generated, scenes, photographs, and generated with a token's mark.
        shares: of these in a batch, in this order; their sum is 1.
        psnr: of marked images, in dB.
        whole_fraction: share of the images that are neither cut out nor turned.
        distorted_fraction: share that goes through one of the distortions.
        distortions: attacks of the training table.
        distortion_scale: share of that table's strengths, in [0, 1].
        views: parts of marked images from which patterns and covariance are measured, before and after.
    """

    vae: Path
    photos: Path
    start: Path
    model: Path
    marks: Path
    counts: tuple[int, ...] = (1280, 1504, 3008, 640)
    shares: tuple[float, ...] = (0.4, 0.15, 0.3, 0.15)
    psnr: float = 38.1
    whole_fraction: float = 0.1
    distorted_fraction: float = 0.5
    distortions: tuple[str, ...] = ()
    distortion_scale: float = 1.0
    views: int = 6144


class AlignerTask(Task):
    """Binary cross-entropy of the message, read of images that were put back not quite where they came from."""

    def __init__(self, recipe: AlignerRecipe, seed: int, attack: Distort | None = None) -> None:
        super().__init__()
        self.recipe, self.seed, self.attack = recipe, seed, attack
        self.mapper = LatentMapper.from_pretrained(recipe.start / "latent_mapper").requires_grad_(False)
        self.bank = load_or_make_bank(recipe.marks, self._fingerprint(), self._sources)
        aligner = self._start()
        # Patterns stay as they were measured: with wrong guesses of the place they would drift.
        aligner.patterns.requires_grad_(False)
        self.aligner = aligner.train().to(memory_format=torch.channels_last)
        self.mean = nn.Parameter(aligner.mean.clone())
        self.log_variance = nn.Parameter(aligner.covariance.diagonal().log())

    def _start(self) -> Aligner:
        start = self.recipe.start
        if (start / "aligner").is_dir():
            return Aligner.from_pretrained(start / "aligner")
        aligner = Aligner.from_extractor(Extractor.from_pretrained(start / "extractor"))
        fit_aligner(aligner, self._views())
        return aligner

    def _fingerprint(self) -> str:
        recipe = self.recipe
        writers = nn.ModuleList([self.mapper, AutoencoderKL.from_pretrained(recipe.vae), TokenWriter(recipe.model)])
        photos = sorted(path.name for path in recipe.photos.iterdir())
        return weights_fingerprint(writers, [_VERSION, self.seed, *recipe.counts, photos])

    def _sources(self) -> Mapping[str, tuple[int, Source]]:
        recipe, mapper, seed = self.recipe, self.mapper, self.seed
        vae = AutoencoderKL.from_pretrained(recipe.vae).to(memory_format=torch.channels_last)
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
        shares = np.cumsum(self.recipe.shares)
        source = [int((rng.random() >= shares[:-1]).sum()) for rng in rngs]
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
        """Images with a mark, at the recipe's quality."""
        return at_psnr(images, change, torch.full((len(images),), self.recipe.psnr, device=images.device))

    def _pose(self, rng: np.random.Generator) -> Tensor:
        """Where an image comes from, and a guess of it, any part of the way to one of a grid: (2, 4)."""
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
        """Images, the same with marks, and the difference ten times enlarged."""
        batch = self.batch(list(range(8)))
        return rows_of_marks(batch["pixels"], self._marked(batch["pixels"], batch["change"]))

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Measure patterns and content anew, and save the aligner."""
        fit_aligner(self.aligner, self._views())
        self.aligner.to(memory_format=torch.contiguous_format).save_pretrained(folder / "aligner")

    def _views(self, batch_size: int = 16) -> Iterator[View]:
        """Parts of marked images, not distorted; a token's marks are left out, being like the others, but noisier."""
        first = 10**9  # samples that training does not draw
        for start in tqdm(range(0, self.recipe.views, batch_size), "patterns", unit="batch"):
            batch = self.batch(list(range(first + start, first + start + batch_size)))
            poses = Poses(batch["pose"])
            if start // batch_size % _WHOLE_VIEWS == 0:
                poses = Poses.of().expand(batch_size)
            rows = batch["source"] < len(self.recipe.counts) - 1
            poses, images, change = Poses(poses.values[rows]), batch["pixels"][rows], batch["change"][rows]
            canvases, seen = put_back(take(self._marked(images, change), poses), poses)
            opposite, _ = put_back(take(self._marked(images, -change), poses), poses)
            yield View(canvases, opposite, seen, batch["bits"][rows])
