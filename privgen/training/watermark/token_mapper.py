"""Training of the token mapper, with the extractor or for it, through a frozen text-to-image model.

"Your Text Encoder Can Be An Object-Level Watermarking Controller" (arXiv 2503.11945) learns one token for one message.
Here a network makes the token of any message. The extractor may learn too, to read what text can write.

Where the folder of the extractor holds a token mapper too, training goes on from it. Otherwise two ramps ease the
start: the number of bits and the quality of marked images.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from privgen.data.scenes import SceneSpec, sample_spec
from privgen.diffusion.unrolled_ddim import Schedule, UnrolledDDIM, decode_images
from privgen.models.extractor import Extractor
from privgen.models.initialise import seeded_weights
from privgen.models.latent_encoder import encoder_config
from privgen.models.mappers import LatentMapper, TokenMapper
from privgen.training.loop import Batch, Task, sample_generator
from privgen.training.scene_latents import load_scenes
from privgen.training.watermark.mark_writers import rows_of_marks
from privgen.watermark.protocols import N_BITS
from privgen.watermark.token import encode_with_token, token_embeddings
from privgen.watermark.write.residual import at_psnr


_PILOTS = 16  # of an extractor that is trained from nothing


@dataclass(frozen=True)
class MapperRecipe:
    """A token mapper, the extractor that it is trained with, and their training.

    Attributes:
        model: folder of the frozen text-to-image model.
        networks: folder with the pre-trained `extractor` and `latent_mapper`, and perhaps a `token_mapper` to go on
            from; without an extractor in it, training starts from an untrained one and the token is the only carrier.
        latents: cache of encoded scenes, of the diffusion training.
        scenes: number of scenes in the cache.
        scene_seed: seed of the run that made the cache.
        vectors: embeddings of a token. This and the three that follow are a new mapper's; a mapper that training goes
            on from keeps its own.
        hidden: see `TokenMapper`.
        complement: see `TokenMapper`.
        tau: timestep, of 1000, from which on the token acts.
        unrolled: denoising steps that gradients flow through.
        guidance_scale: of classifier-free guidance.
        learn_extractor: train the extractor and R(m) too. Photographs are not among what they would be trained on.
        token_fraction: share of a batch marked by the token; the rest is marked in the latents.
        bits_from: message bits at the start; all of them after the first `ramp` of the run.
        psnr_from: quality of marked images at the start, in dB.
        psnr_to: quality after the first `ramp` of the run.
        ramp: share of the run.
        magnitude_weight: of the squared error, in units of 6 dB, by which a token's own change misses that quality.
        distortions: attacks of the training table that images go through before they are read.
        distortion_scale: share of that table's strengths, in [0, 1].
        samples: of the whole run; a `Recipe` sets it to steps times batch size.
    """

    model: Path = Path("runs/diffusion/model")
    networks: Path = Path("runs/extractor/model")
    latents: Path = Path("runs/latents.safetensors")
    scenes: int = 32768
    scene_seed: int = 0
    vectors: int = 48
    hidden: int = 512
    complement: bool = True
    tau: int = 50
    unrolled: int = 1
    guidance_scale: float = 3.0
    learn_extractor: bool = False
    token_fraction: float = 1.0
    bits_from: int = 48
    psnr_from: float = 38.0
    psnr_to: float = 38.5
    ramp: float = 0.5
    magnitude_weight: float = 0.3
    distortions: tuple[str, ...] = ()
    distortion_scale: float = 1.0
    samples: int = 64_000


class MapperTask(Task):
    """Binary cross-entropy of the message, read from images that text has marked."""

    def __init__(self, recipe: MapperRecipe, seed: int, attack: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.recipe, self.seed, self.attack = recipe, seed, attack
        pipe = StableDiffusionPipeline.from_pretrained(recipe.model, safety_checker=None)
        self.pipe = pipe
        self.unet = pipe.unet.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.vae = pipe.vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.text_encoder = pipe.text_encoder.requires_grad_(False).eval()
        self.denoiser = UnrolledDDIM(
            self.unet, Schedule.of(pipe.scheduler), guidance_scale=recipe.guidance_scale, checkpointing=False
        )
        self.extractor, self.latent_mapper = _pretrained(recipe.networks, self.vae, seed)
        for network in (self.extractor, self.latent_mapper):
            if network is not None:
                network.requires_grad_(recipe.learn_extractor)
        self.token_mapper = self._token_mapper()
        self.tau = int(self.token_mapper.config.tau)
        self.latents = load_scenes(recipe.latents, recipe.scenes)["latents"]

    def _token_mapper(self) -> TokenMapper:
        recipe = self.recipe
        if (recipe.networks / "token_mapper").is_dir():
            return TokenMapper.from_pretrained(recipe.networks / "token_mapper")
        table = self.text_encoder.get_input_embeddings().weight
        with seeded_weights(self.seed):
            return TokenMapper(
                self.extractor.config.n_bits,
                recipe.vectors,
                table.shape[1],
                hidden=recipe.hidden,
                scale=float(table.std()),
                tau=recipe.tau,
                complement=recipe.complement,
            )

    def batch(self, indices: list[int]) -> Batch:
        rngs = [np.random.Generator(np.random.PCG64([self.seed, 2, i])) for i in indices]
        scenes = torch.tensor([self._untextured(rng) for rng in rngs])
        generators = [sample_generator(self.seed, i) for i in indices]
        noise = torch.stack([torch.randn(self.latents.shape[1:], generator=g) for g in generators])
        progress = torch.tensor(indices) / self.recipe.samples
        n_bits = self.extractor.config.n_bits
        return {
            "latents": self.latents[scenes].float(),
            "scene": scenes,
            "noise": noise,
            "bits": torch.from_numpy(np.stack([rng.integers(2, size=n_bits) for rng in rngs])).float(),
            "offset": torch.tensor([rng.random() for rng in rngs]),
            "ramp": (progress / self.recipe.ramp).clamp(max=1),
            "index": torch.tensor(indices),
        }

    def _untextured(self, rng: np.random.Generator) -> int:
        """A scene whose caption names no textures and so leaves room for a token; any, if hardly one is such."""
        for _ in range(100):
            scene = int(rng.integers(self.recipe.scenes))
            if not self._spec(scene).textures:
                break
        return scene

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        recipe, ramp = self.recipe, batch["ramp"]
        active = self._active_bits(ramp)
        # Bits that do not count yet are halfway between 0 and 1: nothing is written for them.
        bits = torch.where(active, batch["bits"], torch.full_like(batch["bits"], 0.5))
        clean, by_token, by_latent, share = self.mark(batch, bits)
        target_db = recipe.psnr_from + (recipe.psnr_to - recipe.psnr_from) * ramp
        token_db = -10 * torch.log10((by_token - clean[:share]).square().mean(dim=(1, 2, 3)) + 1e-9)
        change = torch.cat([by_token, by_latent]) - clean
        marked = at_psnr(clean, change, target_db)
        if self.attack is not None:
            marked = self.attack(marked, generator=[sample_generator(self.seed, int(i)) for i in batch["index"]])
        logits = self.extractor(marked)
        loss = F.binary_cross_entropy_with_logits(logits, batch["bits"], weight=active.float())
        loss = loss * active.numel() / active.sum()
        magnitude = ((token_db - target_db[:share]) / 6).square().mean()
        right = ((logits > 0) == (batch["bits"] > 0.5)).float() * active
        return {
            "loss": loss + recipe.magnitude_weight * magnitude,
            "bce": loss,
            "token_accuracy": right[:share].sum() / active[:share].sum(),
            "token_db": token_db.mean(),
        } | ({"latent_accuracy": right[share:].sum() / active[share:].sum()} if share < len(bits) else {})

    def _active_bits(self, ramp: Tensor) -> Tensor:
        """Which bits count, (B, n_bits): ever more of them, all from two thirds of the ramp on."""
        n_bits = self.extractor.config.n_bits
        count = self.recipe.bits_from + (n_bits - self.recipe.bits_from) * (1.5 * ramp).clamp(max=1)
        return torch.arange(n_bits, device=ramp.device)[None] < count[:, None].round()

    def mark(self, batch: Batch, bits: Tensor) -> tuple[Tensor, Tensor, Tensor, int]:
        """Mark the first part of a batch by the token and the rest in its latents.

        Returns:
            Unmarked images of the whole batch (B, 3, H, W), those marked by the token, those marked in the latents,
            and the number of the former.
        """
        share = round(len(bits) * (self.recipe.token_fraction if self.latent_mapper is not None else 1.0))
        prompts = [self._caption(int(i)) for i in batch["scene"][:share]]
        timesteps = self._timesteps(float(batch["offset"][0]))
        alpha = self.denoiser.schedule.alpha(timesteps[0])
        z_t = alpha**0.5 * batch["latents"][:share] + (1 - alpha) ** 0.5 * batch["noise"][:share]
        with torch.no_grad():
            plain = self._encode(prompts)
            empty = self._encode([""]).expand_as(plain)
            z_c = torch.cat([self.denoiser.run(z_t, timesteps, plain, empty)[-1], batch["latents"][share:]])
            clean = decode_images(self.vae, z_c)
        token, opposite = token_embeddings(self.token_mapper, bits[:share])
        embeds = encode_with_token(self.pipe, prompts, token)
        negative = empty if opposite is None else encode_with_token(self.pipe, [""] * share, opposite)
        z_w = self.denoiser.run(z_t, timesteps, embeds, negative)[-1]
        if self.latent_mapper is not None:
            z_w = torch.cat([z_w, z_c[share:] + self.latent_mapper(bits[share:])])
        marked = decode_images(self.vae, z_w, checkpointing=False)
        return clean, marked[:share], marked[share:], share

    def _caption(self, scene: int) -> str:
        return self._spec(scene).caption

    def _spec(self, scene: int) -> SceneSpec:
        return sample_spec(self.recipe.scene_seed * 100_000_000 + scene)

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        ids = self.pipe.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
        hidden: Tensor = self.text_encoder(ids.to(self.text_encoder.device))[0]
        return hidden

    def _timesteps(self, offset: float) -> list[int]:
        """A few timesteps from at most tau down, moved a little from batch to batch."""
        gap = self.tau / self.recipe.unrolled
        top = self.tau - 0.25 * gap * offset
        return [round(top - k * gap) for k in range(self.recipe.unrolled)]

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Unmarked images, marked images, and the difference ten times enlarged."""
        batch = {name: value.to(self.vae.device) for name, value in self.batch(list(range(8))).items()}
        clean, by_token, by_latent, _ = self.mark(batch, batch["bits"])
        return rows_of_marks(clean, torch.cat([by_token, by_latent]))

    def export(self, folder: Path) -> None:
        """Save the networks."""
        networks: dict[str, Any] = {
            "extractor": self.extractor,
            "token_mapper": self.token_mapper,
            "latent_mapper": self.latent_mapper,
        }
        for name, network in networks.items():
            if network is not None:
                network.to(memory_format=torch.contiguous_format).save_pretrained(folder / name)


def _pretrained(folder: Path, vae: AutoencoderKL, seed: int) -> tuple[Extractor, LatentMapper | None]:
    """The extractor to go on with, and the residual encoder that belongs to it."""
    if (folder / "extractor").is_dir():
        return Extractor.from_pretrained(folder / "extractor"), LatentMapper.from_pretrained(folder / "latent_mapper")
    with seeded_weights(seed):
        return Extractor(n_bits=N_BITS, pilots=_PILOTS, **encoder_config(vae)), None
