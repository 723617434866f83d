"""Marks that were made once, for a reader that is trained on the same marks many times.

Writing a mark takes several times as long as learning from it. So images and what a mark changes in them are kept;
turned round, the change is the mark of the opposite message.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from privgen.data.photos import random_crop, random_view
from privgen.data.scenes import draw_scene
from privgen.diffusion.latents import decode, encode
from privgen.io.tensor_cache import load_or_make
from privgen.training.loop import sample_generator
from privgen.training.watermark.mark_writers import TokenWriter


Source = Callable[[list[int]], tuple[Tensor, Tensor, Tensor]]
"""From numbers to images (B, 3, S, S) in [0, 1], what marks change in them, and the messages (B, n_bits)."""

_BATCH = 16
_FIRST_SCENE = 5 * 10**12  # scenes that no training run draws


@dataclass(frozen=True, eq=False)
class MarkBank:
    """N images and marks for them.

    Attributes:
        images: (N, 3, S, S) uint8, without a mark.
        changes: (N, 3, S, S) float16, what a mark adds to pixels in [0, 1], of any amplitude.
        bits: (N, n_bits) uint8, its message.
        source: (N,) uint8, what the image is: a place in the list of sources.
    """

    images: Tensor
    changes: Tensor
    bits: Tensor
    source: Tensor

    def draw(self, source: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """An image of a source (3, S, S) in [0, 1], a mark of unknown amplitude for it, and the mark's bits.

        Args:
            source: a place in the list of sources.
            rng: draws.
        """
        first, count = int((self.source < source).sum()), int((self.source == source).sum())
        number, opposite = first + int(rng.integers(count)), bool(rng.random() < 0.5)
        change, bits = self.changes[number].float(), self.bits[number]
        return self.images[number].float() / 255, -change if opposite else change, 1 - bits if opposite else bits


def load_or_make_bank(
    path: Path, fingerprint: str, prepare: Callable[[], Mapping[str, tuple[int, Source]]]
) -> MarkBank:
    """The bank in a file, or one that is made now: about ten minutes for some thousand images.

    Args:
        path: a safetensors file; made when it is missing.
        fingerprint: of all that the bank depends on.
        prepare: gives sources by name, each with how many images it is to make; called if the file is missing.

    Raises:
        PrivgenError: the file cannot be read or written, or was made of other networks or with other settings.
    """
    return MarkBank(**load_or_make(path, fingerprint, lambda: _make(prepare()), "a bank of marks"))


def _make(sources: Mapping[str, tuple[int, Source]]) -> dict[str, Tensor]:
    parts: list[tuple[Tensor, ...]] = []
    for place, (name, (count, make)) in enumerate(sources.items()):
        parts += [(*part, torch.full((len(part[0]),), place, dtype=torch.uint8)) for part in _made(name, count, make)]
    images, changes, bits, source = (torch.cat(part) for part in zip(*parts, strict=True))
    return {"images": images, "changes": changes, "bits": bits, "source": source}


def _made(name: str, count: int, make: Source) -> Iterator[tuple[Tensor, ...]]:
    for start in tqdm(range(0, count, _BATCH), f"marks: {name}", unit="batch"):
        images, changes, bits = make(list(range(start, min(start + _BATCH, count))))
        yield (255 * images).round().to(torch.uint8).cpu(), changes.half().cpu(), bits.to(torch.uint8)


def messages(numbers: Sequence[int], n_bits: int, seed: int) -> Tensor:
    """Random messages (B, n_bits) of 0 and 1, each a function of seed and number."""
    return torch.stack([torch.randint(2, (n_bits,), generator=sample_generator(seed, i)) for i in numbers])


def scenes(vae: Any, mapper: Any, seed: int) -> Source:
    """Scenes as the autoencoder gives them back, with marks in their latents."""

    def make(numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        pixels = [draw_scene(_FIRST_SCENE + 10**8 * seed + i).pixels for i in numbers]
        clean, change, bits = _in_latents(vae, mapper, torch.from_numpy(np.stack(pixels)), numbers, seed)
        return clean.clamp(0, 1), change, bits

    return make


def photographs(vae: Any, mapper: Any, photos: tuple[NDArray[np.uint8], ...], seed: int) -> Source:
    """Parts of photographs as they are, with what marks in their latents change."""

    def part(number: int) -> NDArray[np.float32]:
        rng = np.random.Generator(np.random.PCG64([seed, 2, number]))
        return (random_view if rng.random() < 0.5 else random_crop)(photos, 128, rng)

    def make(numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        pixels = torch.from_numpy(np.stack([part(i) for i in numbers]))
        return pixels, *_in_latents(vae, mapper, pixels, numbers, seed)[1:]

    return make


def generated(vae: Any, mapper: Any, images: Tensor, seed: int) -> Source:
    """Generated images (N, 3, S, S) in [0, 1], with what marks in their latents change."""

    def make(numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        pixels = images[torch.tensor(numbers) % len(images)]
        return pixels, *_in_latents(vae, mapper, pixels, numbers, seed)[1:]

    return make


def by_tokens(writer: TokenWriter, images: Tensor, n_bits: int, seed: int) -> Source:
    """The same images, with what the tokens of messages change."""

    def make(numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        pixels, bits = images[torch.tensor(numbers) % len(images)], messages(numbers, n_bits, seed)
        return pixels, writer(pixels, bits, [sample_generator(seed, i) for i in numbers]), bits

    return make


@torch.no_grad()
def _in_latents(vae: Any, mapper: Any, pixels: Tensor, numbers: list[int], seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images given back by the autoencoder, what marks in their latents change, and messages."""
    bits = messages(numbers, mapper.config.n_bits, seed)
    z = encode(vae, pixels)
    clean = decode(vae, z)
    return clean, decode(vae, z + mapper(bits, *z.shape[-2:])) - clean, bits
