"""Training of mini itself: a text-to-image model in the latents of its autoencoder, on scenes."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from privgen.hallucination.learned_variance import HybridLoss, hybrid_loss
from privgen.hub import load_pipeline
from privgen.models.autoencoder import load_autoencoder
from privgen.models.family import Canvas
from privgen.models.initialise import seeded_weights
from privgen.models.tokenizer import build_tokenizer, scene_words
from privgen.noise_assignment.assign import assign_noise
from privgen.training.loop import Batch, Task, sample_generator
from privgen.training.scene_latents import load_or_encode_scenes, tokenize
from privgen.training.texture_latents import texture_changes
from privgen.training.timesteps import golden_times


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
"""Prompts of a preview."""


@dataclass(frozen=True)
class TextToImageRecipe:
    """A text-to-image model and its training data.

    Attributes:
        vae: folder of the trained autoencoder.
        start: model whose UNet, text encoder and tokenizer to begin with, see `privgen.hub.resolve_model`. Layers that
            do not fit, because its latents have other channels, begin with random weights. None begins anew.
        size: side of the images in pixels; None takes what the autoencoder's configuration says.
        latents: file that keeps the encoded scenes; made if it is missing.
        scenes: number of scenes to train on.
        channels: of the UNet's levels, finest first.
        heads: attention heads of each level.
        norm_groups: groups of group normalisation; they divide the channels of each level.
        text_width: width of the text encoder, and so of the cross-attention.
        text_layers: layers of the text encoder.
        text_heads: attention heads of the text encoder.
        max_length: tokens of a prompt.
        caption_dropout: fraction of the captions that are replaced by the empty one, for classifier-free guidance.
        snr_cap: largest signal-to-noise ratio plus one at which a sample has its full weight. Above it, the weight is
            in inverse proportion.
        texture_weight: additional weight of the error along the textures that captions name. Textures are faint, and
            few of the dimensions of the latents. A weight along fixed directions leaves the minimum of the loss where
            it is.
        immiscible: permute the noises of a batch so that each lies near its latents (arXiv 2406.12303). Several
            processes permute their own parts of the batch, which changes the run a little.
        learn_variance: learn the variance of the reverse steps too (arXiv 2102.09672). The saved pipeline then samples
            with Diffusers' DDPMScheduler, which alone uses it.
        vlb_weight: weight of the variational bound, which trains the variance.
        precision_weight: weight of a penalty on small variances, see
            `privgen.hallucination.learned_variance.precision_penalty`.
    """

    vae: Path = Path("runs/autoencoder/model/vae")
    start: str | None = None
    size: int | None = None
    latents: Path = Path("runs/latents.safetensors")
    scenes: int = 32768
    channels: tuple[int, ...] = (48, 96, 160)
    heads: tuple[int, ...] = (3, 6, 10)
    norm_groups: int = 16
    text_width: int = 128
    text_layers: int = 2
    text_heads: int = 4
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
    """The noise schedule of Stable Diffusion, with v-prediction."""
    return DDIMScheduler(**_SCHEDULE, set_alpha_to_one=False)


def build_variance_scheduler() -> DDPMScheduler:
    """The same schedule, for a network that has learnt the variance of the reverse steps."""
    return DDPMScheduler(**_SCHEDULE, variance_type="learned_range")


def build_unet(recipe: TextToImageRecipe, canvas: Canvas) -> UNet2DConditionModel:
    """Build a UNet with cross-attention at every level, with random weights.

    Args:
        recipe: its shape.
        canvas: of the autoencoder.
    """
    levels = len(recipe.channels)
    return UNet2DConditionModel(
        sample_size=canvas.latents,
        in_channels=canvas.channels,
        out_channels=canvas.channels * (2 if recipe.learn_variance else 1),
        down_block_types=("CrossAttnDownBlock2D",) * levels,
        up_block_types=("CrossAttnUpBlock2D",) * levels,
        block_out_channels=recipe.channels,
        layers_per_block=1,
        attention_head_dim=recipe.heads,  # in this class the argument counts heads
        cross_attention_dim=recipe.text_width,
        norm_num_groups=recipe.norm_groups,
        use_linear_projection=True,
    )


def build_text_encoder(recipe: TextToImageRecipe, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build a CLIP text encoder for the vocabulary of a tokenizer, with random weights."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=recipe.text_width,
            intermediate_size=4 * recipe.text_width,
            projection_dim=recipe.text_width,
            num_hidden_layers=recipe.text_layers,
            num_attention_heads=recipe.text_heads,
            max_position_embeddings=recipe.max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class TextToImageTask(Task):
    """Trains a UNet and a text encoder together to predict velocities, on latents of scenes."""

    directions: Tensor

    def __init__(self, recipe: TextToImageRecipe, seed: int) -> None:
        super().__init__()
        self.recipe, self.seed = recipe, seed
        self.vae = load_autoencoder(recipe.vae, size=recipe.size)
        self.vae.to(memory_format=torch.channels_last)
        start = load_pipeline(recipe.start, device="cpu") if recipe.start else None
        self.tokenizer = start.tokenizer if start else build_tokenizer(scene_words(), recipe.max_length)
        self.scheduler = build_variance_scheduler() if recipe.learn_variance else build_scheduler()
        with seeded_weights(seed):
            unet = build_unet(recipe, Canvas.of_vae(self.vae))
            self.text_encoder = build_text_encoder(recipe, self.tokenizer)
        if start:
            _copy_what_fits(start.unet, unet)
            _copy_what_fits(start.text_encoder, self.text_encoder)
        self.unet = unet.to(memory_format=torch.channels_last)
        cache = load_or_encode_scenes(recipe.latents, self.vae, self.tokenizer, recipe.scenes, seed)
        self.latents, self.ids = cache["latents"], cache["ids"]
        self.empty = tokenize(self.tokenizer, [""])[0]
        # Where textures have no weight, the one direction is nothing.
        weighted = recipe.texture_weight > 0
        values = self.latents[0].numel()
        directions = torch.linalg.qr(texture_changes(self.vae)).Q if weighted else torch.zeros(values, 1)
        self.register_buffer("directions", directions, persistent=False)

    def batch(self, indices: list[int]) -> Batch:
        which = torch.tensor([self._scene(i) for i in indices])
        generators = [sample_generator(self.seed, i) for i in indices]
        noise = torch.stack([torch.randn(self.latents.shape[1:], generator=g) for g in generators])
        dropped = torch.cat([torch.rand(1, generator=g) for g in generators]) < self.recipe.caption_dropout
        t = (golden_times(indices, self.seed) * self.scheduler.config.num_train_timesteps).long()
        ids = torch.where(dropped[:, None], self.empty, self.ids[which].long())
        latents = self.latents[which].float()
        if self.recipe.immiscible:
            # Not "auto": for a small batch it would draw more noise, and from the global generator.
            noise = assign_noise(latents, noise, method="linear")
        return {"latents": latents, "ids": ids, "noise": noise, "t": t}

    def _scene(self, index: int) -> int:
        """The number of the scene that sample `index` shows. Each epoch shows all scenes in a new order."""
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
        """The parts of the hybrid loss that train the variance, weighted."""
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
        """An ordinary Stable Diffusion pipeline of the networks as they are now."""
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
        """Draw pictures of `PREVIEW_PROMPTS`, each from two seeds."""
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
        """Save the model as an ordinary Diffusers folder."""
        save_pipeline(self.pipeline(), folder)


def save_pipeline(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    """Save a pipeline as an ordinary Diffusers folder, which older versions of Transformers load too.

    Args:
        pipeline: to save. Its UNet and autoencoder become contiguous in memory.
        folder: where to write.
    """
    for part in (pipeline.unet, pipeline.vae):
        part.to(memory_format=torch.contiguous_format)
    pipeline.save_pretrained(folder)
    # The folder that the autoencoder was read from is of no use elsewhere.
    config = folder / "vae" / "config.json"
    entries = {k: v for k, v in json.loads(config.read_text()).items() if k != "_name_or_path"}
    config.write_text(json.dumps(entries, indent=2) + "\n")
    # Versions of Transformers before 5 read the vocabulary from these two files.
    model = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    (folder / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")


def _copy_what_fits(source: nn.Module, target: nn.Module) -> None:
    """Copy the weights whose names and shapes are the same."""
    own = target.state_dict()
    target.load_state_dict({k: v for k, v in source.state_dict().items() if own[k].shape == v.shape}, strict=False)


@lru_cache(maxsize=2)  # a batch touches at most two epochs
def _order(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """A random order of n scenes that depends on seed and epoch alone."""
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(n)
