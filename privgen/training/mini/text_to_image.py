"""Training of mini: a text-to-image latent diffusion model on scenes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from privgen.hallucination.learned_variance import HybridLoss, hybrid_loss
from privgen.models.initialise import seeded_weights
from privgen.models.tokenizer import build_tokenizer, scene_words
from privgen.noise_assignment.assign import assign_noise
from privgen.training.loop import Batch, Task, sample_generator
from privgen.training.scene_latents import load_or_encode_scenes, tokenize
from privgen.training.texture_latents import texture_changes


GOLDEN_RATIO = (5**0.5 - 1) / 2

PREVIEW_PROMPTS = (
    "a cat on a pink background",
    "a rocket on a blue background with fine dots",
    "a hamburger on a gray background, linen and silk texture",
    "a turtle and a guitar on a yellow background",
    "a car and a cactus on a green background with coarse diagonal stripes",
    "a penguin and a teapot on a red background, marble texture",
    "an octopus, a clock and a strawberry on a purple background",
    "a sunflower on an orange background with fine horizontal stripes",
)


@dataclass(frozen=True)
class DiffusionRecipe:
    """A text-to-image model and its training data.

    Attributes:
        vae: folder of the trained autoencoder.
        latents: file that caches the encoded scenes; made when it is missing.
        scenes: number of scenes in the cache.
        channels: of the UNet's levels, finest first.
        heads: attention heads of each level.
        text_width: width of the text encoder, and so of the cross-attention.
        text_layers: layers of the text encoder.
        max_length: tokens of a prompt.
        caption_dropout: share of captions replaced by the empty one, for classifier-free guidance.
        snr_cap: samples whose signal-to-noise ratio plus one is above this weigh less, in inverse proportion.
        texture_weight: extra weight of the error along the textures that captions name. They are few of the latent's
            dimensions and faint; a weight along fixed directions leaves the loss's minimum where it is.
        immiscible: permute the noises of a batch so that each lies near its latents (arXiv 2406.12303). Several
            processes permute their own parts of the batch, which changes the run a little.
        learn_variance: learn the variance of the reverse steps too (arXiv 2102.09672). The saved pipeline samples
            with Diffusers' DDPMScheduler, the only one that uses it.
        vlb_weight: of the variational bound that it is learnt by.
        precision_weight: of a penalty on small variances, see `privgen.hallucination.learned_variance.precision_penalty`.
    """

    vae: Path = Path("runs/vae/model/vae")
    latents: Path = Path("runs/latents.safetensors")
    scenes: int = 32768
    channels: tuple[int, ...] = (48, 96, 160)
    heads: tuple[int, ...] = (3, 6, 10)
    text_width: int = 128
    text_layers: int = 2
    max_length: int = 77
    caption_dropout: float = 0.1
    snr_cap: float = 5.0
    texture_weight: float = 5.0
    immiscible: bool = False
    learn_variance: bool = False
    vlb_weight: float = 0.001
    precision_weight: float = 0.0


_SCHEDULE: Mapping[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
    "clip_sample": False,
}


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise schedule with v-prediction."""
    return DDIMScheduler(**_SCHEDULE, set_alpha_to_one=False)


def build_variance_scheduler() -> DDPMScheduler:
    """The same for a network that has learnt the variance of the reverse steps."""
    return DDPMScheduler(**_SCHEDULE, variance_type="learned_range")


def build_unet(recipe: DiffusionRecipe, latent_channels: int) -> UNet2DConditionModel:
    """An untrained UNet with cross-attention at every level."""
    levels = len(recipe.channels)
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels * (2 if recipe.learn_variance else 1),
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        attention_head_dim=recipe.heads,  # in this class the argument counts heads
        cross_attention_dim=recipe.text_width,
        norm_num_groups=16,
        use_linear_projection=True,
    )


def build_text_encoder(recipe: DiffusionRecipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """An untrained CLIP text encoder for the tokenizer's vocabulary."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.text_width,
            intermediate_size=4 * recipe.text_width,
            projection_dim=recipe.text_width,
            num_hidden_layers=recipe.text_layers,
            num_attention_heads=4,
            max_position_embeddings=recipe.max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class DiffusionTask(Task):
    """Velocity prediction on cached latents, text encoder and UNet trained together."""

    directions: Tensor

    def __init__(self, recipe: DiffusionRecipe, seed: int) -> None:
        super().__init__()
        self.recipe, self.seed = recipe, seed
        self.vae: AutoencoderKL = AutoencoderKL.from_pretrained(recipe.vae).requires_grad_(False)
        self.vae.to(memory_format=torch.channels_last)
        self.tokenizer = build_tokenizer(scene_words(), recipe.max_length)
        self.scheduler = build_variance_scheduler() if recipe.learn_variance else build_scheduler()
        with seeded_weights(seed):
            unet = build_unet(recipe, self.vae.config.latent_channels)
            self.text_encoder = build_text_encoder(recipe, self.tokenizer)
        self.unet = unet.to(memory_format=torch.channels_last)
        cache = load_or_encode_scenes(recipe.latents, self.vae, self.tokenizer, recipe.scenes, seed)
        self.latents, self.ids = cache["latents"], cache["ids"]
        self.empty = self._tokenize([""])[0]
        directions = torch.linalg.qr(texture_changes(self.vae)).Q
        self.register_buffer("directions", directions, persistent=False)

    def _tokenize(self, prompts: list[str]) -> Tensor:
        return tokenize(self.tokenizer, prompts)

    def batch(self, indices: list[int]) -> Batch:
        which = torch.tensor([self._scene(i) for i in indices])
        generators = [sample_generator(self.seed, i) for i in indices]
        noise = torch.stack([torch.randn(self.latents.shape[1:], generator=g) for g in generators])
        dropped = torch.cat([torch.rand(1, generator=g) for g in generators]) < self.recipe.caption_dropout
        # Multiples of the golden ratio fill [0, 1) evenly, so every batch covers all noise levels.
        share = (torch.tensor(indices, dtype=torch.float64) * GOLDEN_RATIO + self.seed * 0.1) % 1
        t = (share * self.scheduler.config.num_train_timesteps).long()
        ids = torch.where(dropped[:, None], self.empty, self.ids[which].long())
        latents = self.latents[which].float()
        if self.recipe.immiscible:
            # Named, because "auto" would draw more noise for a small batch, and from the global generator.
            noise = assign_noise(latents, noise, method="linear")
        return {"latents": latents, "ids": ids, "noise": noise, "t": t}

    def _scene(self, index: int) -> int:
        """Number of the scene that sample `index` shows: each once an epoch, in a new order every time."""
        epoch, place = divmod(index, self.recipe.scenes)
        return int(_order(self.recipe.scenes, self.seed, epoch)[place])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        z_0, noise, t = batch["latents"], batch["noise"], batch["t"]
        z_t = self.scheduler.add_noise(z_0, noise, t).contiguous(memory_format=torch.channels_last)
        hidden = self.text_encoder(batch["ids"])[0]
        output = self.unet(z_t, t, encoder_hidden_states=hidden).sample
        v = output[:, : z_0.shape[1]]
        difference = (v - self.scheduler.get_velocity(z_0, noise, t)).flatten(1)
        error = difference.square().mean(dim=1)
        along = (difference @ self.directions).square().sum(dim=1) / difference.shape[1]
        alpha_bar = self.scheduler.alphas_cumprod.to(t.device)[t]
        # The signal-to-noise ratio plus one is 1 / (1 - alpha_bar).
        weight = (self.recipe.snr_cap * (1 - alpha_bar)).clamp(max=1.0)
        late = t < 250
        loss = (weight * (error + self.recipe.texture_weight * along)).mean()
        variance = self._variance_loss(output, batch) if self.recipe.learn_variance else {}
        return {
            "loss": loss + sum(variance.values()),
            "mse": error.mean(),
            "mse_textures": along.mean() * difference.shape[1] / self.directions.shape[1],
            "mse_late": (error * late).sum() / late.sum().clamp(min=1),
            **variance,
        }

    def _variance_loss(self, output: Tensor, batch: Batch) -> dict[str, Tensor]:
        """The parts of the hybrid loss that teach the variance, with their weights."""
        weights = {"vlb": self.recipe.vlb_weight, "precision": self.recipe.precision_weight}
        parts = hybrid_loss(
            output,
            batch["latents"],
            batch["noise"],
            batch["t"],
            self.scheduler.alphas_cumprod,
            prediction="v_prediction",
            settings=HybridLoss(vlb_weight=weights["vlb"], precision=weights["precision"]),
        )
        return {f"loss_{name}": weight * parts[name].mean() for name, weight in weights.items() if weight > 0}

    def pipeline(self) -> StableDiffusionPipeline:
        """An ordinary Stable Diffusion pipeline around the modules as they are."""
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=self.scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Pictures of `PREVIEW_PROMPTS`, two seeds each."""
        pipeline = self.pipeline()
        pipeline.set_progress_bar_config(disable=True)
        rows = []
        for seed in (0, 1):
            generators = [torch.Generator().manual_seed(1000 * seed + i) for i in range(len(PREVIEW_PROMPTS))]
            output = pipeline(
                list(PREVIEW_PROMPTS),
                num_inference_steps=25,
                guidance_scale=3.0,
                generator=generators,
                output_type="np",
            )
            rows.append(np.concatenate(list(output.images), axis=1))
        return Image.fromarray((np.concatenate(rows) * 255).round().astype(np.uint8))

    def export(self, folder: Path) -> None:
        """Save an ordinary Diffusers folder."""
        save_pipeline(self.pipeline(), folder)


def save_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Save an ordinary Diffusers folder, which older Transformers load too; the networks become contiguous."""
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.contiguous_format)
    pipeline.save_pretrained(folder)
    # Where the autoencoder was read from says nothing to anybody else.
    config = folder / "vae" / "config.json"
    entries = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
    config.write_text(json.dumps(entries, indent=2) + "\n")
    # Transformers before version 5 reads the vocabulary from these two files.
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


_ORDERS: dict[tuple[int, int, int], np.ndarray] = {}


def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    """A random order of n things, the same for the same seed and epoch."""
    key = (n, seed, epoch)
    if key not in _ORDERS:
        while len(_ORDERS) > 1:  # a batch touches two epochs at most
            _ORDERS.pop(next(iter(_ORDERS)))
        _ORDERS[key] = np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)
    return _ORDERS[key]
