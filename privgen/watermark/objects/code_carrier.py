"""Write the code of objects: into latents directly, or by a token that says it to the model.

Both carriers write for the image at hand. What to write is solved for in closed form: what a reader sees shall be as
much like the key's template as the quality allows. Then gradient descent fits it to the image. What is written is
decoded, and its difference to the image without a mark is delivered.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from privgen.diffusion.latents import decode, encode
from privgen.diffusion.sampling import GUIDANCE
from privgen.diffusion.unrolled_ddim import UnrolledDDIM, frozen
from privgen.errors import UsageError
from privgen.io.residual import to_canvas
from privgen.watermark.key import Key
from privgen.watermark.objects.carrier import ObjectWriter, Place, Seen
from privgen.watermark.objects.code import CodeReader, code_pattern
from privgen.watermark.objects.code_read import CodeLocator, logits_in
from privgen.watermark.objects.code_writer import CodeWriter, HostImage, cells_of
from privgen.watermark.objects.read import Located
from privgen.watermark.token import encode_with_token
from privgen.watermark.write.with_token import plain_embeds, timesteps_below


PSNR = 29.0
"""Quality inside a mask, in dB, if nothing else is asked for."""

STEPS = 12
"""Gradient steps that fit a mark in the latents to its image, if nothing else is asked for."""
CLOSED_ROUNDS = 4
"""Rounds in which the loudness is solved for in closed form."""

_COVERED = 0.3  # a cell that a mask covers to less than this has no pattern of its own


@dataclass(frozen=True, eq=False)
class Denoising:
    """The end of the run that generates an image, from where a token starts to act.

    Attributes:
        latents: (1, C, h, w), at the first of the timesteps.
        timesteps: training timesteps that are left, in descending order.
        prompt: of the image.
        negative: the negative prompt.
        guidance_scale: of classifier-free guidance.
    """

    latents: Tensor
    timesteps: tuple[int, ...]
    prompt: str = ""
    negative: str = ""
    guidance_scale: float = GUIDANCE


class LatentCarrier:
    """Writes the code of objects into latents.

    Args:
        reader: of the latents in which it is written.
        steps: of gradient descent, after the closed form. Each calls every network once, forwards and backwards.
    """

    payload: int | None = None
    closed_rounds = CLOSED_ROUNDS
    loudest = 0.0

    def __init__(self, reader: CodeReader, steps: int = STEPS) -> None:
        self.reader, self.steps = reader, steps
        self._image: HostImage | None = None

    @property
    def rounds(self) -> int:
        """See `privgen.watermark.objects.carrier.ObjectCarrier`."""
        return self.closed_rounds + self.steps

    def quality(self, pixels: int) -> float:
        """Return the default quality; see `privgen.watermark.objects.carrier.ObjectCarrier`."""
        return PSNR

    @torch.no_grad()
    def writer(self, plain: Tensor, place: Place, key: Key) -> ObjectWriter:
        """Return what writes a key's mark; see `privgen.watermark.objects.carrier.ObjectCarrier`."""
        if self._image is None or self._image.plain is not plain:
            canvas = to_canvas([plain], self.reader.canvas_of(plain))
            z = encode(self.reader.pipe.vae, canvas)
            self._image = HostImage(plain, z, decode(self.reader.pipe.vae, z), *self.reader.field(plain))
        return CodeWriter(self, place, key, self._image)

    def basis(self, cells: Tensor) -> Tensor:
        """Return a pattern for each channel of each cell; see `PatternWriter`."""
        channels = self.reader.code.config.channels
        least = min(_COVERED, 0.9 * float(cells.max()))  # a small object may cover no cell well
        inside = (cells > least).flatten().nonzero()[:, 0]
        unit = torch.zeros(channels, len(inside), channels, cells.numel(), device=cells.device)
        for channel in range(channels):
            unit[channel, torch.arange(len(inside)), channel, inside] = 1
        return unit.flatten(0, 1).unflatten(2, tuple(cells.shape))

    def freed(self, root: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Return the loudness of the same patterns; see `PatternWriter`."""
        return root, unit

    def change(self, z: Tensor, loud: Tensor, basis: Tensor) -> Tensor:
        """Return the change of latents (1, C, h, w) that is written for the loudness (K,) of patterns (K, C, h, w)."""
        return torch.einsum("k,kcyx->cyx", loud.to(basis), basis)[None]

    def look(self, pixels: Tensor) -> Seen:
        """Return the field of an image; see `privgen.watermark.objects.carrier.ObjectCarrier`."""
        if not self.steps:
            return Seen(self.reader.field(pixels)[0])
        with torch.inference_mode(False), torch.enable_grad(), frozen([self.reader.pipe.vae, self.reader.pipe.unet]):
            leaf = pixels.detach().clone().requires_grad_()
            return Seen(self.reader.field(leaf)[0], leaf)

    def locate(self, pixels: Tensor, keys: Sequence[Key]) -> Sequence[Located]:
        """Say which part of an image belongs to which key; see `CodeLocator`."""
        return CodeLocator(self.reader, keys)(pixels)

    def matches(self, seen: Seen, mask: Tensor, key: Key) -> int:
        """Count the bits that are read; see `privgen.watermark.objects.carrier.ObjectCarrier`."""
        pattern = code_pattern(key, self.reader.code.config.waves)
        cells = cells_of(mask, (seen.evidence.shape[1], seen.evidence.shape[2]))
        logits = logits_in(self.reader.code.evidence(seen.evidence.detach()), cells, pattern)
        return int(((logits > 0).long() == pattern.bits).sum())


class TokenCarrier(LatentCarrier):
    """Has text write the code of objects: a second branch of denoising, for t <= tau, whose prompt ends in a token.

    "Your Text Encoder Can Be An Object-Level Watermarking Controller" (arXiv 2503.11945). Inside the mask the result
    of the branch with the token counts, and elsewhere that of the one without. The paper mixes the two in each step
    of the whole run. Here the branch exists only below tau, which is the last of 25 steps, and is mixed in at the
    end; and the noun stays in the prompt.

    Args:
        reader: of the latents in which it is written; its code has words.
        denoising: the end of the run that generates the image; None for an image that no run has made. That one is
            noised to tau, and denoised with and without the token, without a prompt.
        steps: of gradient descent by which the token's vectors are fitted to the image.
        seed: of the noise.

    Raises:
        UsageError: the code has no words.
    """

    closed_rounds = 1
    loudest = 38.0  # as the patterns that the model learnt to write

    def __init__(
        self, reader: CodeReader, denoising: Denoising | None = None, *, steps: int = STEPS, seed: int = 0
    ) -> None:
        super().__init__(reader, steps)
        if not reader.code.config.vectors:
            raise UsageError("No token of this model writes the marks of objects; use the carrier latent or tile.")
        self.denoising, self.seed = denoising, seed
        self._noised: tuple[Tensor, Denoising] | None = None
        self._ended: Tensor | None = None

    def basis(self, cells: Tensor) -> Tensor:
        """Return the waves that a token can say: (K, C, h, w); see `PatternWriter`."""
        waves = self.reader.code.config.waves
        unit = torch.view_as_complex(torch.eye(2 * waves).unflatten(1, (waves, 2)))
        return self.reader.code.patterns(unit.to(cells.device), *cells.shape)

    def freed(self, root: Tensor, unit: Tensor) -> tuple[Tensor, Tensor]:
        """Return what tokens say: the vectors of the one for the prompt, and of the one against it."""
        said = torch.einsum("m,mvw->vw", (root @ unit).to(self.reader.code.content), self.reader.code.content)
        both = torch.cat([said.flatten(), -said.flatten()]).double().cpu()
        return torch.ones(1, dtype=torch.float64), both

    def change(self, z: Tensor, loud: Tensor, basis: Tensor) -> Tensor:
        """Return the change of latents that a token makes; see `PatternWriter`."""
        run, pipe, code = self._run(z), self.reader.pipe, self.reader.code
        words, opposite = (code.words + said for said in loud.to(code.words).view(2, *code.words.shape))
        # Classifier-free guidance enlarges the difference between a word and its opposite.
        guided = UnrolledDDIM(pipe.unet, self.reader.guess.schedule, _guidance(run), checkpointing=False)
        marked, against = (
            encode_with_token(pipe, [run.prompt], words),
            encode_with_token(pipe, [run.negative], opposite),
        )
        return guided.run(run.latents, run.timesteps, marked, against)[-1] - self._plain(run)

    def plain(self) -> Tensor:
        """Return the latents (1, C, h, w) with which the run ends, without a token.

        Raises:
            UsageError: no run has made the image.
        """
        if self.denoising is None:
            raise UsageError("No run has made this image.")
        return self._plain(self.denoising)

    @torch.no_grad()
    def _plain(self, run: Denoising) -> Tensor:
        if self._ended is None:
            pipe = self.reader.pipe
            scale = _guidance(run) if run.prompt else 1.0
            guided = UnrolledDDIM(pipe.unet, self.reader.guess.schedule, scale, checkpointing=False)
            prompts = plain_embeds(pipe, run.prompt), plain_embeds(pipe, run.negative)
            self._ended = guided.run(run.latents, run.timesteps, *prompts)[-1]
        return self._ended

    def _run(self, z: Tensor) -> Denoising:
        if self.denoising is not None:
            return self.denoising
        if self._noised is None or self._noised[0] is not z:
            self._noised, self._ended = (z, self._renoised(z)), None
        return self._noised[1]

    def _renoised(self, z: Tensor) -> Denoising:
        pipe = self.reader.pipe
        timesteps = timesteps_below(pipe, self.reader.code.config.tau, 25)
        alpha = self.reader.guess.schedule.alpha(timesteps[0])
        noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(self.seed)).to(z)
        return Denoising(alpha**0.5 * z + (1 - alpha) ** 0.5 * noise, tuple(timesteps))


def _guidance(run: Denoising) -> float:
    """The scale of guidance, with which tokens were taught to write."""
    return max(run.guidance_scale, GUIDANCE)
