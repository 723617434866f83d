"""Training of a text-to-image model in the language that tokens are made of.

"Your Text Encoder Can Be An Object-Level Watermarking Controller" (arXiv 2503.11945) optimises an embedding, through a
frozen model, until the model writes one message. The text encoder of a small model is too weak for that, so this model
learns a language instead, see `privgen.training.watermark.patch_language`. The canvas is cut into cells, and a token
has one word for each cell, which says what pattern to lay over it. The token of a message says the pattern R(m). It is
linear in the bits, so a new key needs no training.

What the model should predict is known exactly. Without words, it is what the model predicted before. With words, it is
that plus a fraction of their pattern. So both losses are regressions without noise. At first the patterns are random
ones, for which each word is needed in its own cell, and later more and more those of messages.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from privgen.data.photos import load_photos, random_crop, random_view
from privgen.data.scenes import sample_spec
from privgen.diffusion.latents import decode, encode
from privgen.diffusion.unrolled_ddim import Schedule, UnrolledDDIM
from privgen.hub import load_pipeline
from privgen.models.family import Canvas
from privgen.models.mappers import LatentMapper, TokenMapper
from privgen.training.loop import Batch, Task, sample_generator
from privgen.training.mini.text_to_image import save_pipeline
from privgen.training.scene_latents import load_or_encode_scenes, scene_seed, tokenize
from privgen.training.watermark.attention_loss import AttentionLoss
from privgen.training.watermark.mark_preview import rows_of_marks
from privgen.training.watermark.patch_language import PatchLanguage, channel_gains
from privgen.watermark.token import encode_with_token


_PREVIEW_TIMESTEP = 39  # the last of 25 steps


@dataclass(frozen=True)
class TokenLanguageRecipe:
    """A trained text-to-image model, and the language that it learns.

    Attributes:
        model: folder of the model.
        start: folder of a model that a run like this has made, to go on from. Plain predictions are still compared
            with those of `model`.
        networks: folder with the `latent_mapper` whose patterns tokens write.
        latents: file that keeps the encoded scenes; made if it is missing.
        photos: folder of photographs, on which words are said without a caption.
        scenes: number of scenes to train on.
        cells: number of cells along each side of the canvas; a token has one word for each.
        tau: timestep, of 1000, from which on tokens act.
        earliest: lowest timestep, of 1000, that is trained.
        guidance_scale: of classifier-free guidance, with which the words together write R(m) at its strength.
        marked_fraction: fraction of a batch that has words; the rest is plain, at all timesteps.
        mark_weight: weight of the error of what words write, which is 1 where they write nothing. The squared error of
            plain predictions has weight 1.
        attention_weight: weight of the loss by which half of the heads in the coarser levels learn to attend to the
            word of the cell that they are in.
        empty_fraction: fraction of the samples with words that have no caption.
        photo_fraction: fraction of the samples without a caption that show photographs.
        cycles: most waves of a random pattern across the canvas, as for the patterns of R(m).
        turn: fraction of the run in which fewer and fewer patterns are random. All are at the beginning, and
            `random_fraction` of them at the end of it.
        random_fraction: fraction of the patterns that stay random.
        loud: factor by which patterns are stronger at the beginning.
        fade: fraction of the run in which that factor falls to 1.
        strength: factor on what the tokens of the exported mapper say.
        samples: of the whole run; a `Recipe` sets it to steps times batch size.
    """

    model: Path = Path("runs/text-to-image/model")
    start: Path | None = None
    networks: Path = Path("runs/extractor/model")
    latents: Path = Path("runs/token-latents.safetensors")
    photos: Path = Path("privgen/data/photos/train")
    scenes: int = 12288
    cells: int = 4
    tau: int = 75
    earliest: int = 15
    guidance_scale: float = 3.0
    marked_fraction: float = 0.6
    mark_weight: float = 0.1
    attention_weight: float = 0.05
    empty_fraction: float = 0.4
    photo_fraction: float = 0.5
    cycles: int = 5
    turn: float = 0.3
    random_fraction: float = 0.3
    loud: float = 6.0
    fade: float = 0.7
    strength: float = 1.0
    samples: int = 72_000


class TokenLanguageTask(Task):
    """Trains words to write their patterns, and all other predictions to stay as they were."""

    def __init__(self, recipe: TokenLanguageRecipe, seed: int) -> None:
        super().__init__()
        self.recipe, self.seed = recipe, seed
        self.pipe = load_pipeline(recipe.model, safety_checker=False, device="cpu", dtype="float32")
        self.vae = self.pipe.vae.requires_grad_(False).to(memory_format=torch.channels_last)
        self.unet = self.pipe.unet.train().to(memory_format=torch.channels_last)
        self.text_encoder, self.tokenizer = self.pipe.text_encoder.train(), self.pipe.tokenizer
        self.scheduler, self.schedule = self.pipe.scheduler, Schedule.of(self.pipe.scheduler)
        self.old_unet = copy.deepcopy(self.unet).requires_grad_(False).eval()
        self.old_text_encoder = copy.deepcopy(self.text_encoder).requires_grad_(False).eval()
        cache = load_or_encode_scenes(recipe.latents, self.vae, self.tokenizer, recipe.scenes, seed)
        self.latents = cache["latents"]
        self.photos = self._photo_latents() if recipe.photo_fraction > 0 else self.latents[:0]
        attentions = [a for block in self.unet.up_blocks[:-1] for a in getattr(block, "attentions", ())]
        self.attention = AttentionLoss([a.transformer_blocks[0].attn2 for a in attentions], recipe.cells)
        self.language = self._language()

    @torch.no_grad()
    def _language(self) -> PatchLanguage:
        """A new language, or that of the model to go on from, whose networks are loaded too."""
        recipe, table = self.recipe, self.text_encoder.get_input_embeddings().weight
        mapper = LatentMapper.from_pretrained(recipe.networks / "latent_mapper", use_safetensors=True)
        # The signed sum of these patterns has the strength of R(m), on average over messages.
        patterns = mapper.config.strength / mapper.patterns.square().sum(dim=0).mean().sqrt() * mapper.patterns
        gains = channel_gains(self.vae, self.latents[:8].float())
        language = PatchLanguage(patterns, gains, cells=recipe.cells, width=table.shape[1], cycles=recipe.cycles)
        if recipe.start is None:
            language.draw(float(table.std()), self.seed)
            return language
        known = load_pipeline(recipe.start, safety_checker=False, device="cpu", dtype="float32")
        self.unet.load_state_dict(known.unet.state_dict())
        self.text_encoder.load_state_dict(known.text_encoder.state_dict())
        language.learn_from(
            TokenMapper.from_pretrained(recipe.start / "privgen" / "token_mapper", use_safetensors=True)
        )
        return language

    @torch.no_grad()
    def _photo_latents(self, count: int = 1024, batch_size: int = 32) -> Tensor:
        """Latents of crops and views of photographs, (count, C, h, w) float16."""
        photos, size, latents = load_photos(self.recipe.photos), Canvas.of_vae(self.vae).size, []
        for first in range(0, count, batch_size):
            rngs = [np.random.Generator(np.random.PCG64([self.seed, 3, first + i])) for i in range(batch_size)]
            pixels = np.stack([(random_crop, random_view)[i % 2](photos, size, rng) for i, rng in enumerate(rngs)])
            latents.append(encode(self.vae, torch.from_numpy(pixels)).half())
        return torch.cat(latents)

    def batch(self, indices: list[int]) -> Batch:
        recipe, n_bits, shape = self.recipe, len(self.language.patterns), self.latents.shape[1:]
        rngs = [np.random.Generator(np.random.PCG64([self.seed, 4, i])) for i in indices]
        noise = torch.stack([torch.randn(shape, generator=sample_generator(self.seed, i)) for i in indices])
        scenes = [int(rng.integers(recipe.scenes)) for rng in rngs]
        marked = np.array([rng.random() < recipe.marked_fraction for rng in rngs])
        captionless = np.array([rng.random() < recipe.empty_fraction for rng in rngs])
        on_photos = captionless & [rng.random() < recipe.photo_fraction for rng in rngs]
        late = recipe.earliest + (recipe.tau + 1 - recipe.earliest) * np.array([rng.random() for rng in rngs])
        progress = np.array(indices) / recipe.samples
        random_fraction = np.maximum(1 - progress / recipe.turn, recipe.random_fraction)
        is_random = np.array([rng.random() for rng in rngs]) < random_fraction
        steps = self.scheduler.config.num_train_timesteps
        latents = [
            self.photos[int(rng.integers(len(self.photos)))] if photo else self.latents[scene]
            for rng, photo, scene in zip(rngs, on_photos, scenes, strict=True)
        ]
        return {
            "latents": torch.stack(latents).float(),
            "noise": noise,
            "marked": torch.from_numpy(marked),
            "captionless": torch.from_numpy(captionless),
            "scene": torch.tensor(scenes),
            "bits": torch.from_numpy(np.stack([rng.integers(2, size=n_bits) for rng in rngs])).float(),
            "t": torch.from_numpy(np.where(marked, late, [steps * rng.random() for rng in rngs])).long(),
            "random": torch.from_numpy(is_random),
            "loud": torch.from_numpy(recipe.loud ** (1 - progress / recipe.fade).clip(0)).float(),
            "drawn": torch.stack([torch.randn(shape, generator=sample_generator(self.seed + 1, i)) for i in indices]),
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        marked = batch["marked"]
        changed = error = gain = attention = batch["latents"].new_zeros(())
        # A small batch may have samples of one kind only.
        if not bool(marked.all()):
            changed = self.changed({name: value[~marked] for name, value in batch.items()})
        if bool(marked.any()):
            error, gain = self.written({name: value[marked] for name, value in batch.items()})
            attention = torch.stack(self.attention.pop_all()).mean()
        return {
            "loss": changed + self.recipe.mark_weight * error + self.recipe.attention_weight * attention,
            "attention": attention,
            "changed": changed,
            "mark_error": error,
            "mark_gain": gain,
        }

    def changed(self, batch: Batch) -> Tensor:
        """Mean squared change of plain predictions since the beginning of the training."""
        z_t, prompts = self._noised(batch), self.prompts(batch)
        v = self.unet(z_t, batch["t"], encoder_hidden_states=self._encode(prompts)).sample
        return (v - self._before(z_t, batch["t"], prompts)).square().mean()

    def written(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compare what words write with what they should write.

        Returns:
            The mean squared error divided by the mean square of what they should write, and the fraction of it that
            they do write.
        """
        z_t, prompts = self._noised(batch), self.prompts(batch)
        pattern, gains = self.pattern(batch), self.language.gains
        spoken = encode_with_token(self.pipe, prompts, self.language.embeddings(pattern))
        starts = torch.tensor([len(self.tokenizer(prompt).input_ids) - 1 for prompt in prompts])
        with self.attention.collecting(starts):
            v = self.unet(z_t, batch["t"], encoder_hidden_states=spoken).sample
        sigma = (1 - self.scheduler.alphas_cumprod.to(z_t.device)[batch["t"]]).sqrt()
        change = gains * sigma[:, None, None, None] * (self._before(z_t, batch["t"], prompts) - v)
        # Guidance enlarges the difference between a pattern and its opposite.
        wanted = gains * pattern / (2 * self.recipe.guidance_scale - 1)
        size, change = wanted.square().mean(), change / batch["loud"][:, None, None, None]
        return (change - wanted).square().mean() / size, (change * wanted).mean() / size

    def pattern(self, batch: Batch) -> Tensor:
        """The patterns that words should write, (B, C, h, w): random ones, or those of messages."""
        messages, randoms = self.language.of_message(batch["bits"]), self.language.smoothed(batch["drawn"])
        return torch.where(batch["random"][:, None, None, None], randoms, messages)

    def prompts(self, batch: Batch) -> list[str]:
        """The captions of a batch. A caption is empty if it is to be left out, or if it leaves no room for words."""
        room = self.tokenizer.model_max_length - len(self.language.words)
        prompts = []
        columns = (batch[name].tolist() for name in ("scene", "captionless", "marked"))
        for scene, captionless, marked in zip(*columns, strict=True):
            caption = sample_spec(scene_seed(self.seed, scene)).caption
            too_long = marked and len(self.tokenizer(caption).input_ids) > room
            prompts.append("" if captionless or too_long else caption)
        return prompts

    def _noised(self, batch: Batch) -> Tensor:
        z_t = self.scheduler.add_noise(batch["latents"], batch["noise"], batch["t"])
        return z_t.contiguous(memory_format=torch.channels_last)

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        hidden: Tensor = self.text_encoder(tokenize(self.tokenizer, list(prompts)).to(self.vae.device))[0]
        return hidden

    @torch.no_grad()
    def _before(self, z_t: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
        """The prediction of the model as it was before this training."""
        hidden = self.old_text_encoder(tokenize(self.tokenizer, list(prompts)).to(z_t.device))[0]
        v: Tensor = self.old_unet(z_t, t, encoder_hidden_states=hidden).sample
        return v

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Draw one late denoising step without and with words, and ten times the difference."""
        batch = {name: value.to(self.vae.device) for name, value in self.batch(list(range(8))).items()}
        batch |= {"t": torch.full_like(batch["t"], _PREVIEW_TIMESTEP), "marked": torch.ones_like(batch["marked"])}
        z_t, prompts, empty = self._noised(batch), self.prompts(batch), [""] * len(batch["t"])
        plain = self._encode(prompts), self._encode(empty)
        patterns = (self.language.of_message(bits) for bits in (batch["bits"], 1 - batch["bits"]))
        words = (self.language.embeddings(pattern) for pattern in patterns)
        spoken = (encode_with_token(self.pipe, *pair) for pair in zip((prompts, empty), words, strict=True))
        denoiser = UnrolledDDIM(self.unet, self.schedule, self.recipe.guidance_scale, checkpointing=False)
        images = [
            decode(self.vae, denoiser.run(z_t, [_PREVIEW_TIMESTEP], *embeds)[-1]).clamp(0, 1)
            for embeds in (plain, spoken)
        ]
        return rows_of_marks(*images)

    def export(self, folder: Path) -> None:
        """Save an ordinary Diffusers folder, and the token mapper in `privgen/` in it."""
        save_pipeline(self.pipe, folder)
        mapper = self.language.token_mapper(self.recipe.tau, self.recipe.strength)
        mapper.save_pretrained(folder / "privgen" / "token_mapper")
