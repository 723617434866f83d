"""A bank of images and marks that are made once and kept, for an aligner that is trained on them many times.

Writing a mark takes several times as long as learning from it. The bank keeps images and the changes by which marks
are added to them. With its sign turned round, a change is the mark of the opposite message.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privgen.data.photos import random_crop, random_view
from privgen.data.scenes import draw_scene
from privgen.diffusion.latents import decode, encode
from privgen.io.progress import Bar
from privgen.io.tensor_cache import load_or_make
from privgen.models.family import Canvas
from privgen.models.mappers import LatentMapper
from privgen.training.loop import sample_generator
from privgen.training.watermark.token_writer import TokenWriter


Source = Callable[[list[int]], tuple[Tensor, Tensor, Tensor]]
"""Makes images (B, 3, S, S) in [0, 1], their marks, and the messages (B, n_bits), for a list of B numbers."""

_BATCH = 16
_FIRST_SCENE = 5 * 10**12  # the first of the scenes that no training run draws


@dataclass(frozen=True, eq=False)
class MarkBank:
    """N images and a mark for each.

    Attributes:
        images: (N, 3, S, S) uint8, without marks.
        changes: (N, 3, S, S) float16, the marks: what they add to pixels in [0, 1], at any amplitude.
        bits: (N, n_bits) uint8, the messages of the marks.
        source: (N,) uint8, where the images come from: indices into the list of sources.
    """

    images: Tensor
    changes: Tensor
    bits: Tensor
    source: Tensor

    def draw(self, source: int, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """Draw an image and a mark for it.

        Args:
            source: where the image comes from, an index into the list of sources.
            rng: source of randomness.

        Returns:
            The image (3, S, S) in [0, 1], the change (3, S, S), of unknown amplitude, and the message (n_bits,).
        """
        first, count = int((self.source < source).sum()), int((self.source == source).sum())
        number, opposite = first + int(rng.integers(count)), bool(rng.random() < 0.5)
        change, bits = self.changes[number].float(), self.bits[number]
        return self.images[number].float() / 255, -change if opposite else change, 1 - bits if opposite else bits


def load_or_make_bank(
    path: Path, fingerprint: str, prepare: Callable[[], Mapping[str, tuple[int, Source]]]
) -> MarkBank:
    """Load a bank from a file, or make it now, which takes about ten minutes for some thousand images.

    Args:
        path: a safetensors file; made if it is missing.
        fingerprint: of all that the bank depends on.
        prepare: called if the file is missing. It gives the sources by name, and how many images to make of each.

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
    for start in Bar(range(0, count, _BATCH), f"marks: {name}", unit="batch"):
        images, changes, bits = make(list(range(start, min(start + _BATCH, count))))
        yield (255 * images).round().to(torch.uint8).cpu(), changes.half().cpu(), bits.to(torch.uint8)


def messages(numbers: Sequence[int], n_bits: int, seed: int) -> Tensor:
    """Draw messages (B, n_bits) of 0 and 1, each of which depends on the seed and its number alone."""
    return torch.stack([torch.randint(2, (n_bits,), generator=sample_generator(seed, i)) for i in numbers])


def scenes(vae: Any, mapper: LatentMapper, seed: int) -> Source:
    """Scenes as the autoencoder decodes them, with marks in their latents."""
    size = Canvas.of_vae(vae).size

    def make(numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        pixels = [draw_scene(_FIRST_SCENE + 10**8 * seed + i, size=size).pixels for i in numbers]
        clean, change, bits = _in_latents(vae, mapper, torch.from_numpy(np.stack(pixels)), numbers, seed)
        return clean.clamp(0, 1), change, bits

    return make


def photographs(vae: Any, mapper: LatentMapper, photos: tuple[NDArray[np.uint8], ...], seed: int) -> Source:
    """Parts of photographs, with marks in their latents that are added to their pixels."""
    size = Canvas.of_vae(vae).size

    def part(number: int) -> NDArray[np.float32]:
        rng = np.random.Generator(np.random.PCG64([seed, 2, number]))
        return (random_view if rng.random() < 0.5 else random_crop)(photos, size, rng)

    def make(numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        pixels = torch.from_numpy(np.stack([part(i) for i in numbers]))
        return pixels, *_in_latents(vae, mapper, pixels, numbers, seed)[1:]

    return make


def generated(vae: Any, mapper: LatentMapper, images: Tensor, seed: int) -> Source:
    """Generated images (N, 3, S, S) in [0, 1], with marks in their latents that are added to their pixels."""

    def make(numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        pixels = images[torch.tensor(numbers) % len(images)]
        return pixels, *_in_latents(vae, mapper, pixels, numbers, seed)[1:]

    return make


def by_tokens(writer: TokenWriter, images: Tensor, n_bits: int, seed: int) -> Source:
    """Generated images (N, 3, S, S) in [0, 1], with the marks of tokens."""

    def make(numbers: list[int]) -> tuple[Tensor, Tensor, Tensor]:
        pixels, bits = images[torch.tensor(numbers) % len(images)], messages(numbers, n_bits, seed)
        return pixels, writer(pixels, bits, [sample_generator(seed, i) for i in numbers]), bits

    return make


@torch.no_grad()
def _in_latents(
    vae: Any, mapper: LatentMapper, pixels: Tensor, numbers: list[int], seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Images as the autoencoder decodes them, the changes by marks in their latents, and the messages."""
    bits = messages(numbers, mapper.config.n_bits, seed)
    z = encode(vae, pixels)
    clean = decode(vae, z)
    return clean, decode(vae, z + mapper(bits, *z.shape[-2:])) - clean, bits
