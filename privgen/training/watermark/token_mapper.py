"""Training of the token mapper through a frozen text-to-image model, alone or together with the extractor.

"Your Text Encoder Can Be An Object-Level Watermarking Controller" (arXiv 2503.11945) learns one token for one message.
Here a network makes the token of any message. The extractor can learn too, so that it reads what text can write.

Two ramps ease the beginning: the number of bits, and the quality of marked images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from privgen.data.scenes import SceneSpec, sample_spec
from privgen.diffusion.unrolled_ddim import Schedule, UnrolledDDIM, decode_images
from privgen.hub import load_pipeline
from privgen.io.residual import at_psnr
from privgen.models.extractor import Extractor
from privgen.models.initialise import seeded_weights
from privgen.models.latent_encoder import encoder_config
from privgen.models.mappers import LatentMapper, TokenMapper
from privgen.training.distortions import training_distortion
from privgen.training.loop import Batch, Task, sample_generator
from privgen.training.scene_latents import load_scenes, scene_seed, tokenize
from privgen.training.watermark.mark_preview import rows_of_marks
from privgen.watermark.token import encode_with_token, token_embeddings


@dataclass(frozen=True)
class TokenMapperRecipe:
    """A token mapper, the extractor that it is trained with, and their training.

    Attributes:
        model: folder of the frozen text-to-image model.
        networks: folder with a trained `extractor` and `latent_mapper`. If it also has a `token_mapper`, training goes
            on from that. If it has no extractor, a new one is trained, and tokens are the only carrier.
        n_bits: bits of a message of a new extractor.
        pilots: number of filters of a new extractor that measure the noise.
        latents: file with the encoded scenes of the text-to-image model's training.
        scenes: number of scenes in that file.
        scene_seed: seed of the run that made that file.
        vectors: number of embeddings of a new mapper's token.
        hidden: width of the hidden layers of a new mapper, see `privgen.models.mappers.TokenMapper`.
        complement: whether the negative prompt of a new mapper ends in the token of the opposite message.
        tau: timestep, of 1000, from which on the token of a new mapper acts.
        unrolled: number of denoising steps that gradients flow through.
        guidance_scale: of classifier-free guidance.
        learn_extractor: train the extractor and R(m) too. They are then trained without photographs.
        token_fraction: fraction of a batch that tokens mark; the rest is marked in the latents.
        bits_from: number of bits that count at the beginning.
        psnr_from: quality of marked images at the beginning, in dB.
        psnr_to: quality of marked images after the ramp, in dB.
        ramp: fraction of the run in which bits and quality rise.
        magnitude_weight: weight of the squared error, in units of 6 dB, by which the token's own change misses the
            quality that is asked for.
        distortions: names of attacks that distort images before they are read, see
            `privgen.training.distortions`.
        distortion_scale: fraction of the full strength of the distortions, in [0, 1].
        samples: of the whole run; a `Recipe` sets it to steps times batch size.
    """

    model: Path = Path("runs/text-to-image/model")
    networks: Path = Path("runs/extractor/model")
    n_bits: int = 48
    pilots: int = 16
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


class TokenMapperTask(Task):
    """Trains by the binary cross-entropy of messages, read from images that tokens have marked."""

    def __init__(self, recipe: TokenMapperRecipe, seed: int) -> None:
        super().__init__()
        self.recipe, self.seed = recipe, seed
        self.attack = training_distortion(recipe.distortions, recipe.distortion_scale)
        pipe = load_pipeline(recipe.model, safety_checker=False, device="cpu", dtype="float32")
        self.pipe = pipe
        self.unet = pipe.unet.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.vae = pipe.vae.requires_grad_(False).eval().to(memory_format=torch.channels_last)
        self.text_encoder = pipe.text_encoder.requires_grad_(False).eval()
        self.denoiser = UnrolledDDIM(
            self.unet, Schedule.of(pipe.scheduler), guidance_scale=recipe.guidance_scale, checkpointing=False
        )
        self.extractor, self.latent_mapper = self._readers()
        for network in (self.extractor, self.latent_mapper):
            if network is not None:
                network.requires_grad_(recipe.learn_extractor)
        self.token_mapper = self._token_mapper()
        self.tau = int(self.token_mapper.config.tau)
        self.latents = load_scenes(recipe.latents, recipe.scenes)["latents"]

    def _readers(self) -> tuple[Extractor, LatentMapper | None]:
        """The trained extractor with its latent mapper, or a new extractor."""
        recipe, folder = self.recipe, self.recipe.networks
        if (folder / "extractor").is_dir():
            mapper = LatentMapper.from_pretrained(folder / "latent_mapper", use_safetensors=True)
            return Extractor.from_pretrained(folder / "extractor", use_safetensors=True), mapper
        with seeded_weights(self.seed):
            return Extractor(n_bits=recipe.n_bits, pilots=recipe.pilots, **encoder_config(self.vae)), None

    def _token_mapper(self) -> TokenMapper:
        """The trained mapper, or a new one."""
        recipe = self.recipe
        if (recipe.networks / "token_mapper").is_dir():
            return TokenMapper.from_pretrained(recipe.networks / "token_mapper", use_safetensors=True)
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
        """Draw a scene whose caption names no textures, so that it leaves room for a token; any one, if few are so."""
        for _ in range(100):
            scene = int(rng.integers(self.recipe.scenes))
            if not self._spec(scene).textures:
                break
        return scene

    def _spec(self, scene: int) -> SceneSpec:
        return sample_spec(scene_seed(self.recipe.scene_seed, scene))

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        recipe, ramp = self.recipe, batch["ramp"]
        active = self._active_bits(ramp)
        # Bits that do not count yet are halfway between 0 and 1, for which nothing is written.
        bits = torch.where(active, batch["bits"], torch.full_like(batch["bits"], 0.5))
        clean, by_token, by_latent = self.mark(batch, bits)
        n = len(by_token)
        target_db = recipe.psnr_from + (recipe.psnr_to - recipe.psnr_from) * ramp
        token_db = -10 * torch.log10((by_token - clean[:n]).square().mean(dim=(1, 2, 3)) + 1e-9)
        change = torch.cat([by_token, by_latent]) - clean
        marked = at_psnr(clean, change, target_db)
        if self.attack is not None:
            marked = self.attack(marked, generator=[sample_generator(self.seed, int(i)) for i in batch["index"]])
        logits = self.extractor(marked)
        loss = F.binary_cross_entropy_with_logits(logits, batch["bits"], weight=active.float())
        loss = loss * active.numel() / active.sum()
        magnitude = ((token_db - target_db[:n]) / 6).square().mean()
        right = ((logits > 0) == (batch["bits"] > 0.5)).float() * active
        return {
            "loss": loss + recipe.magnitude_weight * magnitude,
            "bce": loss,
            "token_accuracy": right[:n].sum() / active[:n].sum(),
            "token_db": token_db.mean(),
        } | ({"latent_accuracy": right[n:].sum() / active[n:].sum()} if n < len(bits) else {})

    def _active_bits(self, ramp: Tensor) -> Tensor:
        """Which bits count, (B, n_bits) of bool: more and more of them, and all from two thirds of the ramp on."""
        n_bits = self.extractor.config.n_bits
        count = self.recipe.bits_from + (n_bits - self.recipe.bits_from) * (1.5 * ramp).clamp(max=1)
        return torch.arange(n_bits, device=ramp.device)[None] < count[:, None].round()

    def mark(self, batch: Batch, bits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mark the first part of a batch with tokens, and the rest in its latents.

        Returns:
            The whole batch without marks (B, 3, H, W), the images that tokens mark (n, 3, H, W), and those that are
            marked in the latents (B - n, 3, H, W).
        """
        n = round(len(bits) * (self.recipe.token_fraction if self.latent_mapper is not None else 1.0))
        prompts = [self._spec(int(i)).caption for i in batch["scene"][:n]]
        timesteps = self._timesteps(float(batch["offset"][0]))
        alpha = self.denoiser.schedule.alpha(timesteps[0])
        z_t = alpha**0.5 * batch["latents"][:n] + (1 - alpha) ** 0.5 * batch["noise"][:n]
        with torch.no_grad():
            plain = self._encode(prompts)
            empty = self._encode([""]).expand_as(plain)
            z_c = torch.cat([self.denoiser.run(z_t, timesteps, plain, empty)[-1], batch["latents"][n:]])
            clean = decode_images(self.vae, z_c)
        token, opposite = token_embeddings(self.token_mapper, bits[:n])
        embeds = encode_with_token(self.pipe, prompts, token)
        negative = empty if opposite is None else encode_with_token(self.pipe, [""] * n, opposite)
        z_w = self.denoiser.run(z_t, timesteps, embeds, negative)[-1]
        if self.latent_mapper is not None:
            z_w = torch.cat([z_w, z_c[n:] + self.latent_mapper(bits[n:], *z_c.shape[-2:])])
        marked = decode_images(self.vae, z_w, checkpointing=False)
        return clean, marked[:n], marked[n:]

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        ids = tokenize(self.pipe.tokenizer, list(prompts))
        hidden: Tensor = self.text_encoder(ids.to(self.text_encoder.device))[0]
        return hidden

    def _timesteps(self, offset: float) -> list[int]:
        """The timesteps of the unrolled steps, from at most tau down. They move a little from batch to batch."""
        gap = self.tau / self.recipe.unrolled
        top = self.tau - 0.25 * gap * offset
        return [round(top - k * gap) for k in range(self.recipe.unrolled)]

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Draw images, the same images with marks, and ten times the difference."""
        batch = {name: value.to(self.vae.device) for name, value in self.batch(list(range(8))).items()}
        clean, by_token, by_latent = self.mark(batch, batch["bits"])
        return rows_of_marks(clean, torch.cat([by_token, by_latent]))

    def export(self, folder: Path) -> None:
        """Save the networks."""
        for name in ("extractor", "token_mapper", "latent_mapper"):
            network = getattr(self, name)
            if network is not None:
                network.to(memory_format=torch.contiguous_format).save_pretrained(folder / name)
