"""Training of the words that tokens are made of, into a text-to-image model's text encoder and UNet.

"Your Text Encoder Can Be An Object-Level Watermarking Controller" (arXiv 2503.11945) searches, through a frozen model,
for an embedding that makes the model write one message. A small model's text encoder has too narrow a voice for that,
so this model learns a language instead. Its words are patches: the canvas is cut into a few cells, and one word for
each says what pattern to lay over that cell. The token of a message is the sentence for R(m), linear in the bits, so
that a new key needs no training.

What the model is to predict is known exactly: with words what it predicted before this training, plus a share of their
pattern; without words what it predicted before. Both losses are regressions without noise. Patterns are random ones
at first, where every word is needed in its own cell, and more and more those of messages.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from privgen.data.photos import load_photos, random_crop, random_view
from privgen.data.scenes import sample_spec
from privgen.diffusion.latents import decode, encode
from privgen.diffusion.unrolled_ddim import Schedule, UnrolledDDIM
from privgen.models.mappers import LatentMapper, TokenMapper, signs
from privgen.training.loop import Batch, Task, sample_generator
from privgen.training.mini.text_to_image import save_pipeline
from privgen.training.scene_latents import load_or_encode_scenes, scene_seed, tokenize
from privgen.training.watermark.attention_loss import AddressLoss
from privgen.training.watermark.mark_writers import rows_of_marks
from privgen.watermark.token import encode_with_token
from privgen.watermark.write.linear_code import low_frequencies


_PREVIEW_TIMESTEP = 39  # the last of 25 steps


@dataclass(frozen=True)
class TokenRecipe:
    """A trained text-to-image model, and the words that it learns.

    Attributes:
        model: folder of the model.
        start: folder of a model that a run like this has made, to go on from with its words; `model` stays what
            plain predictions should be.
        networks: folder with the `latent_mapper` whose patterns tokens write.
        latents: file that caches the encoded scenes; made when it is missing.
        photos: folder of photographs, on which words are said without a caption.
        scenes: number of scenes in the cache.
        cells: along each side of the canvas; a token has one word for each.
        tau: timestep, of 1000, from which on tokens act.
        earliest: lowest timestep, of 1000, that is trained.
        guidance_scale: of classifier-free guidance, with which the words together write R(m) at its strength.
        marked_fraction: share of a batch that says words; the rest is plain, at all timesteps.
        mark_weight: of the error of what words write, which is 1 where they write nothing, against the squared error
            of the velocity of plain predictions.
        address_weight: of the cross-entropy by which half of the heads in the coarser levels learn to attend to the
            word of the cell that they are in.
        empty_fraction: share of the sentences without a caption before them.
        photo_fraction: share of these that are said on photographs.
        cycles: of random patterns across the canvas, at most, as those of R(m).
        turn: share of the run after which only `random_fraction` of the patterns are random; all are at its beginning.
        random_fraction: see `turn`.
        loud: how much stronger than they end the patterns are at the beginning; they fade until `fade`.
        fade: share of the run.
        strength: factor on what the sentences of the exported mapper say.
        samples: of the whole run; a `Recipe` sets it to steps times batch size.
    """

    model: Path = Path("runs/diffusion/model")
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
    address_weight: float = 0.05
    empty_fraction: float = 0.4
    photo_fraction: float = 0.5
    cycles: int = 5
    turn: float = 0.3
    random_fraction: float = 0.3
    loud: float = 6.0
    fade: float = 0.7
    strength: float = 1.0
    samples: int = 72_000


class TokenTask(Task):
    """What words write, and that nothing else changes."""

    gains: Tensor
    patterns: Tensor
    smooth: Tensor

    def __init__(self, recipe: TokenRecipe, seed: int) -> None:
        super().__init__()
        self.recipe, self.seed = recipe, seed
        self.pipe = StableDiffusionPipeline.from_pretrained(recipe.model, safety_checker=None)
        self.vae = self.pipe.vae.requires_grad_(False).to(memory_format=torch.channels_last)
        self.unet = self.pipe.unet.train().to(memory_format=torch.channels_last)
        self.text_encoder, self.tokenizer = self.pipe.text_encoder.train(), self.pipe.tokenizer
        self.scheduler, self.schedule = self.pipe.scheduler, Schedule.of(self.pipe.scheduler)
        self.old_unet = copy.deepcopy(self.unet).requires_grad_(False).eval()
        self.old_text_encoder = copy.deepcopy(self.text_encoder).requires_grad_(False).eval()
        self.latent_mapper = LatentMapper.from_pretrained(recipe.networks / "latent_mapper").requires_grad_(False)
        cache = load_or_encode_scenes(recipe.latents, self.vae, self.tokenizer, recipe.scenes, seed)
        self.latents = cache["latents"]
        self.photos = self._photo_latents() if recipe.photo_fraction > 0 else self.latents[:0]
        attentions = [a for block in self.unet.up_blocks[:-1] for a in getattr(block, "attentions", ())]
        self.addresses = AddressLoss([a.transformer_blocks[0].attn2 for a in attentions], recipe.cells)
        self.register_buffer("gains", channel_gains(self.vae, self.latents[:8].float()), persistent=False)
        self.register_buffer("patterns", self._patterns(), persistent=False)
        height, width = self.patterns.shape[2:]
        smooth = low_frequencies(1, height, width, recipe.cycles).float()
        self.register_buffer("smooth", smooth @ smooth.T, persistent=False)
        words, content = self._new_sentences() if recipe.start is None else self._go_on_from(recipe.start)
        self.words, self.content = nn.Parameter(words), nn.Parameter(content)

    def _new_sentences(self) -> tuple[Tensor, Tensor]:
        """Random words (words, dim), and a random map (dim, numbers) of what they say."""
        table = self.text_encoder.get_input_embeddings().weight
        numbers, dim, scale = self.patches(self.patterns).shape[2], table.shape[1], float(table.detach().std())
        drawn = torch.randn(self.recipe.cells**2, dim, generator=sample_generator(self.seed, 0))
        mixing = nn.init.orthogonal_(torch.empty(dim, numbers), generator=sample_generator(self.seed, 1))
        return scale * drawn, scale * mixing

    @torch.no_grad()
    def _go_on_from(self, start: Path) -> tuple[Tensor, Tensor]:
        """Load a model that knows words; these, and the map of what they say, follow from its token mapper."""
        known = StableDiffusionPipeline.from_pretrained(start, safety_checker=None)
        self.unet.load_state_dict(known.unet.state_dict())
        self.text_encoder.load_state_dict(known.text_encoder.state_dict())
        mapper = TokenMapper.from_pretrained(start / "privgen" / "token_mapper")
        words = mapper.direct.bias.view(mapper.config.vectors, -1)
        said = mapper.direct.weight.unflatten(0, words.shape).permute(2, 0, 1)  # (bits, words, dim)
        patches = self.patches(self.patterns)
        solved = torch.linalg.lstsq(patches.flatten(0, 1), said.flatten(0, 1), driver="gelsd").solution
        return words.clone(), solved.T.contiguous()

    @torch.no_grad()
    def _photo_latents(self, count: int = 1024, batch_size: int = 32) -> Tensor:
        """Latents of crops and views of photographs, (count, C, h, w) float16."""
        photos, latents = load_photos(self.recipe.photos), []
        for first in range(0, count, batch_size):
            rngs = [np.random.Generator(np.random.PCG64([self.seed, 3, first + i])) for i in range(batch_size)]
            pixels = np.stack([(random_crop, random_view)[i % 2](photos, 128, rng) for i, rng in enumerate(rngs)])
            latents.append(encode(self.vae, torch.from_numpy(pixels)).half())
        return torch.cat(latents)

    def _patterns(self) -> Tensor:
        """(n_bits, C, h, w), of which a message's signed sum has the strength of R(m) in the mean."""
        patterns = self.latent_mapper.patterns.detach()
        scaled: Tensor = self.latent_mapper.config.strength / patterns.square().sum(dim=0).mean().sqrt() * patterns
        return scaled

    def batch(self, indices: list[int]) -> Batch:
        recipe, n_bits, shape = self.recipe, len(self.patterns), self.latents.shape[1:]
        rngs = [np.random.Generator(np.random.PCG64([self.seed, 4, i])) for i in indices]
        noise = torch.stack([torch.randn(shape, generator=sample_generator(self.seed, i)) for i in indices])
        scenes = [int(rng.integers(recipe.scenes)) for rng in rngs]
        marked = np.array([rng.random() < recipe.marked_fraction for rng in rngs])
        wordless = np.array([rng.random() < recipe.empty_fraction for rng in rngs])
        on_photos = wordless & [rng.random() < recipe.photo_fraction for rng in rngs]
        late = recipe.earliest + (recipe.tau + 1 - recipe.earliest) * np.array([rng.random() for rng in rngs])
        progress = np.array(indices) / recipe.samples
        share = np.maximum(1 - progress / recipe.turn, recipe.random_fraction)
        is_random = np.array([rng.random() for rng in rngs]) < share
        steps = self.scheduler.config.num_train_timesteps
        latents = [
            self.photos[int(rng.integers(len(self.photos)))] if photo else self.latents[scene]
            for rng, photo, scene in zip(rngs, on_photos, scenes, strict=True)
        ]
        return {
            "latents": torch.stack(latents).float(),
            "noise": noise,
            "marked": torch.from_numpy(marked),
            "wordless": torch.from_numpy(wordless),
            "scene": torch.tensor(scenes),
            "bits": torch.from_numpy(np.stack([rng.integers(2, size=n_bits) for rng in rngs])).float(),
            "t": torch.from_numpy(np.where(marked, late, [steps * rng.random() for rng in rngs])).long(),
            "random": torch.from_numpy(is_random),
            "loud": torch.from_numpy(recipe.loud ** (1 - progress / recipe.fade).clip(0)).float(),
            "drawn": torch.stack([torch.randn(shape, generator=sample_generator(self.seed + 1, i)) for i in indices]),
        }

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        marked = batch["marked"]
        changed = error = gain = address = batch["latents"].new_zeros(())
        # A small batch may hold one kind only.
        if not bool(marked.all()):
            changed = self.changed({name: value[~marked] for name, value in batch.items()})
        if bool(marked.any()):
            error, gain = self.written({name: value[marked] for name, value in batch.items()})
            address = torch.stack(self.addresses.pop_all()).mean()
        return {
            "loss": changed + self.recipe.mark_weight * error + self.recipe.address_weight * address,
            "address": address,
            "changed": changed,
            "mark_error": error,
            "mark_gain": gain,
        }

    def changed(self, batch: Batch) -> Tensor:
        """Mean squared change of plain predictions by this training."""
        z_t, prompts = self._noised(batch), self.prompts(batch)
        v = self.unet(z_t, batch["t"], encoder_hidden_states=self._encode(prompts)).sample
        return (v - self._before(z_t, batch["t"], prompts)).square().mean()

    def written(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """What words write, by what they should.

        Returns:
            Squared error as a share of what they should write, and how much of that they do write, both in the mean.
        """
        z_t, prompts = self._noised(batch), self.prompts(batch)
        pattern = self.pattern(batch)
        spoken = encode_with_token(self.pipe, prompts, self.embeddings(pattern))
        with self.addresses.listening(self._starts(prompts)):
            v = self.unet(z_t, batch["t"], encoder_hidden_states=spoken).sample
        sigma = (1 - self.scheduler.alphas_cumprod.to(z_t.device)[batch["t"]]).sqrt()
        change = self.gains * sigma[:, None, None, None] * (self._before(z_t, batch["t"], prompts) - v)
        # Guidance enlarges the difference between a pattern and its opposite.
        wanted = self.gains * pattern / (2 * self.recipe.guidance_scale - 1)
        size, change = wanted.square().mean(), change / batch["loud"][:, None, None, None]
        return (change - wanted).square().mean() / size, (change * wanted).mean() / size

    def _starts(self, prompts: Sequence[str]) -> Tensor:
        """Where in the encoded prompts the words begin, (B,)."""
        return torch.tensor([len(self.tokenizer(prompt).input_ids) - 1 for prompt in prompts])

    def pattern(self, batch: Batch) -> Tensor:
        """What words are to write in the end, (B, C, h, w): messages' patterns, or random ones as visible as these."""
        messages = self.of_message(batch["bits"])
        loudness = (self.gains * self.patterns).square().sum(dim=0).mean().sqrt()
        # Channels that hardly change pixels would need much of what cannot be seen.
        weak = self.gains < 0.05
        amplitude = (len(self.smooth) / self.smooth.trace()).sqrt()
        smooth = amplitude * (batch["drawn"].flatten(2) @ self.smooth).view_as(batch["drawn"])
        randoms = torch.where(weak, 0.0, loudness * smooth / self.gains.clamp(min=1e-6))
        return torch.where(batch["random"][:, None, None, None], randoms, messages)

    def of_message(self, bits: Tensor) -> Tensor:
        """Messages (B, n_bits) of 0 and 1 as patterns (B, C, h, w)."""
        return torch.einsum("bn,nchw->bchw", signs(bits), self.patterns)

    def embeddings(self, pattern: Tensor) -> Tensor:
        """Patterns (B, C, h, w) as embeddings (B, words, dim): what each cell's word says of it."""
        return self.words + self.patches(pattern) @ self.content.T

    def patches(self, pattern: Tensor) -> Tensor:
        """Patterns (B, C, h, w) cut into cells, (B, words, numbers), each number by how visible it is."""
        seen = self.gains * pattern / (self.gains * self.patterns).square().sum(dim=0).mean().sqrt()
        cells = self.recipe.cells
        cut = seen.unflatten(3, (cells, -1)).unflatten(2, (cells, -1)).permute(0, 2, 4, 1, 3, 5)
        return cut.flatten(3).flatten(1, 2)

    def prompts(self, batch: Batch) -> list[str]:
        """Captions of a batch; empty where they are to be left out, or leave no room for words."""
        room = self.tokenizer.model_max_length - len(self.words)
        prompts = []
        for scene, *empty in zip(*(batch[name].tolist() for name in ("scene", "wordless", "marked")), strict=True):
            caption = sample_spec(scene_seed(self.seed, scene)).caption
            too_long = empty[1] and len(self.tokenizer(caption).input_ids) > room
            prompts.append("" if empty[0] or too_long else caption)
        return prompts

    def _noised(self, batch: Batch) -> Tensor:
        z_t = self.scheduler.add_noise(batch["latents"], batch["noise"], batch["t"])
        return z_t.contiguous(memory_format=torch.channels_last)

    def _encode(self, prompts: Sequence[str]) -> Tensor:
        hidden: Tensor = self.text_encoder(tokenize(self.tokenizer, list(prompts)).to(self.vae.device))[0]
        return hidden

    @torch.no_grad()
    def _before(self, z_t: Tensor, t: Tensor, prompts: Sequence[str]) -> Tensor:
        """What the model predicted before this training."""
        hidden = self.old_text_encoder(tokenize(self.tokenizer, list(prompts)).to(z_t.device))[0]
        v: Tensor = self.old_unet(z_t, t, encoder_hidden_states=hidden).sample
        return v

    @torch.no_grad()
    def preview(self) -> Image.Image:
        """Unmarked images, marked images, and the difference ten times enlarged, of one late denoising step."""
        batch = {name: value.to(self.vae.device) for name, value in self.batch(list(range(8))).items()}
        batch |= {"t": torch.full_like(batch["t"], _PREVIEW_TIMESTEP), "marked": torch.ones_like(batch["marked"])}
        z_t, prompts, empty = self._noised(batch), self.prompts(batch), [""] * len(batch["t"])
        plain = self._encode(prompts), self._encode(empty)
        words = (self.embeddings(self.of_message(bits)) for bits in (batch["bits"], 1 - batch["bits"]))
        spoken = (encode_with_token(self.pipe, *pair) for pair in zip((prompts, empty), words, strict=True))
        denoiser = UnrolledDDIM(self.unet, self.schedule, self.recipe.guidance_scale, checkpointing=False)
        images = [
            decode(self.vae, denoiser.run(z_t, [_PREVIEW_TIMESTEP], *embeds)[-1]).clamp(0, 1)
            for embeds in (plain, spoken)
        ]
        return rows_of_marks(*images)

    def export(self, folder: Path) -> None:
        """Save an ordinary Diffusers folder, and the token mapper in `privgen/` beside it."""
        save_pipeline(self.pipe, folder)
        self.token_mapper().save_pretrained(folder / "privgen" / "token_mapper")

    @torch.no_grad()
    def token_mapper(self) -> TokenMapper:
        """The sentences of all messages, which are linear in the bits."""
        n_bits, (vectors, width) = len(self.patterns), self.words.shape
        mapper = TokenMapper(n_bits, vectors, width, tau=self.recipe.tau, complement=True)
        single = self.recipe.strength * (self.embeddings(self.patterns) - self.words)
        mapper.direct.weight.copy_(single.flatten(1).T)
        mapper.direct.bias.copy_(self.words.flatten())
        return mapper


@torch.no_grad()
def channel_gains(vae: Any, latents: Tensor) -> Tensor:
    """By how much the channels of latents change pixels.

    Args:
        vae: Diffusers' autoencoder.
        latents: (B, C, h, w), scaled, to average over.

    Returns:
        (1, C, 1, 1), RMS of the pixels' change by that of a channel, relative to the mean over channels.
    """
    plain, noise = decode(vae, latents), 0.1 * torch.randn(latents[:, :1].shape, generator=sample_generator(0, 1))
    gains = []
    for channel in range(latents.shape[1]):
        changed = latents.clone()
        changed[:, channel : channel + 1] += noise
        gains.append((decode(vae, changed) - plain).square().mean().sqrt())
    return torch.stack(gains).view(1, -1, 1, 1) / torch.stack(gains).mean()
