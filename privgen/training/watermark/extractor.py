"""Training of the extractor and of the latent mapper R(m), in the latents of a frozen autoencoder.

It is the pre-training of "Your Text Encoder Can Be An Object-Level Watermarking Controller"
(https://huggingface.co/papers/2503.11945). The latent mapper adds a pattern to the latents, the decoder turns them
into pixels, an attack distorts these, and the extractor reads the message. Each marked image has exactly the PSNR that
its step asks for.
"""

from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from privgen.data.photos import load_photos, random_crop, random_view
from privgen.data.scenes import draw_scene
from privgen.diffusion.latents import decode, encode
from privgen.errors import UsageError
from privgen.io.residual import at_psnr
from privgen.models.extractor import Extractor
from privgen.models.family import Canvas
from privgen.models.mappers import LatentMapper
from privgen.training.distortions import training_distortion
from privgen.training.loop import Batch, Task, sample_generator
from privgen.training.watermark.linear_start import CodeSettings, load_or_solve_code
from privgen.training.watermark.mark_preview import rows_of_marks
from privgen.training.watermark.token_writer import TokenWriter
from privgen.watermark.write.residual import decoded_difference
from privgen.watermark.write.with_token import plain_embeds


STRENGTH = 0.25
"""RMS of a new pattern, in units of scaled latents. Training scales its marks to the quality that is asked for."""


@dataclass(frozen=True)
class ExtractorRecipe:
    """An extractor, its latent mapper and their training.

    Attributes:
        vae: folder of the frozen autoencoder.
        photos: folder of photographs.
        n_bits: bits of a message.
        pilots: number of filters that measure the noise, see `privgen.models.extractor.Extractor`.
        code: file that keeps the linear code from which training starts; made if it is missing.
        code_images: number of images to whose content the code is fitted.
        cycles: most waves of a pattern across the canvas. mini has learnt to write smooth patterns by text.
        photo_fraction: fraction of the images that are photographs; the others are scenes.
        learn_patterns: train the patterns of R(m) too; that takes a third of the time of a step.
        psnr_from: quality of marked images at the beginning, in dB.
        psnr_to: quality of marked images after half of the run, in dB.
        distortions: names of attacks that distort images before they are read, see
            `privgen.training.distortions`.
        distortion_scale: fraction of the full strength of the distortions, in [0, 1].
        start: folder with an `extractor` and a `latent_mapper` to go on from, instead of from a linear code.
        model: folder of a text-to-image model with a token mapper, whose tokens write marks too.
        token_fraction: fraction of the marks that tokens write.
        unet: train a U-Net alone. An extractor that has none gets one that starts as the denoiser of `model`.
        samples: of the whole run; a `Recipe` sets it to steps times batch size.
        clean_images: number of unmarked images on which the logits are whitened at the end.
        generated_images: number of further ones for that, which `model` generates.
    """

    vae: Path = Path("runs/autoencoder/model/vae")
    photos: Path = Path("privgen/data/photos/train")
    n_bits: int = 48
    pilots: int = 16
    code: Path = Path("runs/code.safetensors")
    code_images: int = 6144
    cycles: int = 5
    photo_fraction: float = 0.5
    learn_patterns: bool = False
    psnr_from: float = 38.0
    psnr_to: float = 38.5
    distortions: tuple[str, ...] = ()
    distortion_scale: float = 1.0
    start: Path | None = None
    model: Path | None = None
    token_fraction: float = 0.0
    unet: bool = False
    samples: int = 40_000
    clean_images: int = 2_048
    generated_images: int = 0


def linear_extractor(vae: AutoencoderKL, code: dict[str, Tensor], psnr_db: float) -> Extractor:
    """Build an extractor that reads a linear code.

    Args:
        vae: autoencoder for which the code was solved.
        code: from `load_or_solve_code`.
        psnr_db: quality of marked images at which the filters read -1 and 1.
    """
    n_bits = len(code["patterns"])
    extractor = Extractor.from_vae(vae, n_bits, pilots=len(code["filters"]) - n_bits)
    amplitude = 10 ** (-psnr_db / 20) * (3 * extractor.config.size**2 / n_bits) ** 0.5
    extractor.filters.weight.data.copy_(code["filters"] / amplitude)
    extractor.filters.bias.data.copy_(-code["offset"] / amplitude)
    return extractor


class ExtractorTask(Task):
    """Trains by the binary cross-entropy of messages, read after an attack."""

    def __init__(self, recipe: ExtractorRecipe, seed: int) -> None:
        super().__init__()
        self.recipe, self.seed = recipe, seed
        self.attack = training_distortion(recipe.distortions, recipe.distortion_scale)
        self.vae: AutoencoderKL = AutoencoderKL.from_pretrained(recipe.vae, use_safetensors=True).requires_grad_(False)
        self.vae.to(memory_format=torch.channels_last)
        self.size = Canvas.of_vae(self.vae).size
        self.photos = load_photos(recipe.photos) if recipe.photo_fraction > 0 else ()
        extractor, self.mapper = self._coded() if recipe.start is None else self._going_on(recipe.start)
        self.mapper.requires_grad_(recipe.learn_patterns)
        self.writer = None if recipe.model is None else TokenWriter(recipe.model)
        # The filters were trained without regeneration, after which they are too sure of themselves.
        self.log_temperature = torch.nn.Parameter(torch.zeros(()), requires_grad=recipe.unet)
        extractor = self._with_unet(extractor) if recipe.unet else extractor
        self.extractor = extractor.to(memory_format=torch.channels_last)

    def _coded(self) -> tuple[Extractor, LatentMapper]:
        """Networks that write and read a linear code."""
        recipe = self.recipe
        settings = CodeSettings(recipe.n_bits, recipe.pilots, images=recipe.code_images, cycles=recipe.cycles)
        code = load_or_solve_code(recipe.code, self.vae, self.photos, settings, self.attack)
        canvas = Canvas.of_vae(self.vae)
        mapper = LatentMapper(recipe.n_bits, canvas.channels, canvas.latents, STRENGTH)
        mapper.patterns.data.copy_(code["patterns"].view_as(mapper.patterns))
        return linear_extractor(self.vae, code, recipe.psnr_to), mapper

    def _going_on(self, start: Path) -> tuple[Extractor, LatentMapper]:
        """Networks that were trained before."""
        mapper = LatentMapper.from_pretrained(start / "latent_mapper", use_safetensors=True)
        extractor = Extractor.from_pretrained(start / "extractor", use_safetensors=True).train()
        extractor.reset_whitening()
        return extractor, mapper

    def _with_unet(self, extractor: Extractor) -> Extractor:
        """An extractor whose U-Net alone is trained."""
        if self.writer is None:
            raise UsageError("The extractor's U-Net starts as a denoiser; set extractor.model to a folder with one.")
        if extractor.unet is None:
            pipe = self.writer.pipe
            extractor = extractor.with_unet(pipe.vae, pipe.unet, plain_embeds(pipe, ""), self.mapper.patterns)
        for part in (extractor.encoder, extractor.filters, extractor.unet_encoder):
            part.requires_grad_(False)
        return extractor.train()

    def _generated(self) -> Tensor:
        """Generated images without marks, (B, 3, S, S) in [0, 1]; none without a model."""
        if self.writer is None or not self.recipe.generated_images:
            return torch.zeros(0)
        return self.writer.unmarked(self.recipe.generated_images, self.seed).to(self.vae.device)

    def batch(self, indices: list[int]) -> Batch:
        rngs = [np.random.Generator(np.random.PCG64([self.seed, 1, i])) for i in indices]
        photo = [rng.random() < self.recipe.photo_fraction for rng in rngs]
        pixels = [self._image(*drawn) for drawn in zip(indices, photo, rngs, strict=True)]
        progress = torch.tensor(indices) / self.recipe.samples
        decoded = [not is_photo and rng.random() < 0.75 for is_photo, rng in zip(photo, rngs, strict=True)]
        by_token = [rng.random() < self.recipe.token_fraction for rng in rngs]
        return {
            "pixels": torch.from_numpy(np.stack(pixels)).contiguous(memory_format=torch.channels_last),
            "bits": torch.from_numpy(np.stack([rng.integers(2, size=self.recipe.n_bits) for rng in rngs])),
            "as_decoded": torch.tensor(decoded),
            "is_photo": torch.tensor(photo),
            "by_token": torch.tensor(by_token),
            "ramp": (2 * progress).clamp(max=1),
            "index": torch.tensor(indices),
        }

    def _image(self, index: int, is_photo: bool, rng: np.random.Generator) -> NDArray[np.float32]:
        if is_photo:
            return (random_view if rng.random() < 0.5 else random_crop)(self.photos, self.size, rng)
        return draw_scene(index, size=self.size).pixels

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        marked = self.mark(batch)
        if self.attack is not None:
            generators = [sample_generator(self.seed, int(i)) for i in batch["index"]]
            marked = self.attack(marked, generator=generators)
        logits = self.log_temperature.exp() * self.extractor(marked)
        target = batch["bits"].to(logits)
        loss = F.binary_cross_entropy_with_logits(logits, target)
        right = ((logits > 0) == (target > 0.5)).float().mean(dim=1)
        photo = batch["is_photo"]
        return {
            "loss": loss,
            "bit_accuracy": right.mean(),
            "bit_accuracy_photos": _mean_where(right, photo),
            "bit_accuracy_scenes": _mean_where(right, ~photo),
            "bit_accuracy_token": _mean_where(right, batch["by_token"]),
        }

    def mark(self, batch: Batch) -> Tensor:
        """Mark the images of a batch at the quality of this point of the run; (B, 3, S, S) in [0, 1]."""
        x = batch["pixels"]
        with torch.no_grad():
            z = encode(self.vae, x)
            clean = decode(self.vae, z)
        difference = decode(self.vae, z + self.mapper(batch["bits"], *z.shape[-2:])) - clean
        by_token = batch["by_token"]
        if self.writer is not None and bool(by_token.any()):
            generators = [sample_generator(self.seed + 1, int(i)) for i in batch["index"][by_token]]
            written = self.writer(x[by_token], batch["bits"][by_token], generators)
            difference = difference.index_put((by_token,), written)
        base = torch.where(batch["as_decoded"][:, None, None, None], clean.clamp(0, 1), x)
        recipe = self.recipe
        return at_psnr(base, difference, recipe.psnr_from + (recipe.psnr_to - recipe.psnr_from) * batch["ramp"])

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Draw images, the same images with marks, and ten times the difference."""
        batch = self.batch(list(range(8)))
        batch["ramp"] = torch.ones(8)
        batch = {name: value.to(self.vae.device) for name, value in batch.items()}
        return rows_of_marks(batch["pixels"], self.mark(batch))

    @torch.no_grad()
    def export(self, folder: Path) -> None:
        """Whiten the logits, set the strength that gives the final quality, and save both networks."""
        generated = self._generated()
        self.extractor.reset_whitening()
        self.extractor.fit_whitening(self._clean_logits(self.extractor, generated))
        self.mapper.register_to_config(strength=self._calibrate(generated))
        for name, network in (("extractor", self.extractor), ("latent_mapper", self.mapper)):
            network.to(memory_format=torch.contiguous_format).save_pretrained(folder / name)

    def _clean_logits(self, extractor: Extractor, generated: Tensor, batch_size: int = 64) -> Tensor:
        """Logits of unmarked images that training did not draw, and of generated ones (N, 3, S, S)."""
        first = self.recipe.samples
        starts = range(first, first + self.recipe.clean_images, batch_size)
        drawn = (self.batch(list(range(start, start + batch_size)))["pixels"] for start in starts)
        batches = chain(drawn, generated.split(batch_size) if len(generated) else ())
        return torch.cat([extractor(pixels.to(self.vae.device)) for pixels in batches])

    def _calibrate(self, generated: Tensor, images: int = 64, rounds: int = 6) -> float:
        """The strength of R(m) at which marked images have a PSNR of `psnr_to` on average.

        It is measured on generated images if there are some, and on scenes if not.
        """
        x = generated[:images]
        if not len(x):
            scenes = [draw_scene(self.recipe.samples + i, size=self.size).pixels for i in range(images)]
            x = torch.from_numpy(np.stack(scenes))
        z = encode(self.vae, x)
        bits = torch.randint(2, (len(x), self.recipe.n_bits), generator=sample_generator(self.seed, 0)).to(z.device)
        strength = float(self.mapper.config.strength)
        for _ in range(rounds):
            self.mapper.register_to_config(strength=strength)
            change = decoded_difference(self.vae, z, z + self.mapper(bits))
            psnr = (-10 * torch.log10(change.square().mean(dim=(1, 2, 3)))).mean()
            strength *= 10 ** ((float(psnr) - self.recipe.psnr_to) / 20)
        return round(strength, 5)


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    """Mean of the chosen values. If a batch has none, it is the mean of all, so that the curve has no holes."""
    return values[chosen].mean() if bool(chosen.any()) else values.mean()
