"""Marks in images that were cut out of what was marked, or turned.

The pose is searched without knowing any key: where a reader is aligned it is sure of all bits of the message, whatever
they say. Keys being random, a pose that was chosen by this alone says nothing about which bits will match, so that the
p-values of what is read there need no correction for the poses that were tried.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from privgen.models.watermark import Extractor
from privgen.watermark.alignment import Poses, put_back


_SIDES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_DEGREES = tuple(range(-45, 46, 5))
_SPACING = 4  # pixels of a canvas of 128 between places that are tried first
_STEPS = ((0.012, 0.016, 2.0), (0.006, 0.008, 1.0))  # of side, place and degrees, for the search that follows
_ROUNDS = 2  # with each of these

ENOUGH, MARGIN = 1.0, 0.1
"""See `AlignedReader`."""


@torch.no_grad()
def search_poses(reader: Extractor, images: Tensor, aspect: Tensor | float = 1.0) -> tuple[Poses, Tensor]:
    """Find where a reader is surest: as the images are, among cut-outs of half the area and more, or turned.

    Args:
        reader: an `Extractor` that was trained on images put back.
        images: (B, 3, S, S) in [0, 1], squeezed to the reader's size.
        aspect: width by height of the images before that; (B,) or one for all.

    Returns:
        Poses (B), and how sure the reader is there, (B,): see `sureness`.
    """
    aspect = torch.as_tensor(aspect, device=images.device, dtype=images.dtype).expand(len(images))
    best = torch.zeros(len(images), 4, device=images.device)
    best[:, 0] = 1
    surest = torch.full((len(images),), -torch.inf, device=images.device)

    def keep(values: Tensor, sure: Tensor) -> None:
        better = sure > surest
        best[better], surest[better] = values[better], sure[better]

    for degrees in _DEGREES:
        values = Poses.of(degrees=float(degrees)).expand(len(images)).values.to(best)
        keep(values, _sureness_at(reader, images, values, aspect))
    for side in _SIDES:
        for values, sure in _cut_outs(reader, images, side):
            keep(values, sure)
    for side_step, place_step, degrees_step in _STEPS:
        for _ in range(_ROUNDS):
            start = best.clone()
            for change in _neighbours(side_step, place_step, degrees_step).to(best):
                values = start + change
                keep(values, _sureness_at(reader, images, values, aspect))
    return Poses(best), surest


def _sureness_at(reader: Extractor, images: Tensor, values: Tensor, aspect: Tensor) -> Tensor:
    canvases, seen = put_back(images, Poses(values), aspect)
    return sureness(*reader.listen(reader.encode(canvases), seen))


def sureness(bits: Tensor, variance: Tensor) -> Tensor:
    """How much likelier a mark is than none, whatever its message: (B,), log-likelihood ratio in the mean over bits.

    Args:
        bits: (B, n_bits), -1 or 1 in Gaussian noise with a mark, noise alone without.
        variance: (B, 1) of the noise.
    """
    # log cosh x, where cosh would overflow.
    x = (bits / variance).abs()
    log_cosh = x + torch.log1p((-2 * x).exp()) - math.log(2)
    return (log_cosh - 0.5 / variance).mean(dim=1)


def _neighbours(side: float, place: float, degrees: float) -> Tensor:
    """Changes (8, 4) of a pose: a window grows about its centre."""
    rows = [[side, -side / 2, -side / 2, 0], [0, place, 0, 0], [0, 0, place, 0], [0, 0, 0, degrees]]
    changes = torch.tensor(rows)
    return torch.cat([changes, -changes])


def _cut_outs(reader: Extractor, images: Tensor, side: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of one side at all places of a grid, each as poses (B, 4) and sureness (B,).

    Moving a window by whole latents moves what the encoder makes of it, so that it encodes only a few.
    """
    size = images.shape[-1]
    patch = size // round((reader.content.numel() / reader.config.latent_channels) ** 0.5)
    free = 1 - side
    for row, column in product(range(0, patch, _SPACING), repeat=2):
        corner = Poses.of(side=side, left=column / size, top=row / size).expand(len(images))
        canvases, seen = put_back(images, corner, 1.0)
        latents = reader.encode(canvases)
        for down, right in product(range(size // patch), repeat=2):
            shift = torch.tensor([0, right * patch / size, down * patch / size, 0])
            values = corner.values + shift
            if float(values[0, 1:3].max()) > free + _SPACING / 2 / size:
                continue
            moved = latents.roll((down, right), dims=(2, 3))
            inside = seen.roll((down * patch, right * patch), dims=(2, 3))
            yield values.to(images), sureness(*reader.listen(moved, inside))


@dataclass(frozen=True, eq=False)
class AlignedReader:
    """Reads images as they are, or where the aligner is much surer of a mark than there.

    Attributes:
        extractor: reads images as they are.
        aligner: an `Extractor` that was trained on images put back; reads the others.
        enough: how sure of a mark in the image as it is makes a search superfluous.
        margin: by how much surer the aligner must be elsewhere to be believed.
    """

    extractor: Extractor
    aligner: Extractor
    enough: float = ENOUGH
    margin: float = MARGIN

    @torch.no_grad()
    def __call__(self, images: Tensor, aspect: Tensor | float = 1.0) -> tuple[Tensor, Poses]:
        """Read images.

        Args:
            images: (B, 3, S, S) in [0, 1], squeezed to the reader's size.
            aspect: width by height of the images before that; (B,) or one for all.

        Returns:
            Logits (B, n_bits), and the poses at which they were read (B).
        """
        logits, poses = self.extractor(images), Poses.of().expand(len(images)).values.to(images).clone()
        as_they_are = sureness(*self.aligner.listen(self.aligner.encode(images)))
        doubtful = as_they_are < self.enough
        if bool(doubtful.any()):
            aspects = torch.as_tensor(aspect, device=images.device, dtype=images.dtype).expand(len(images))[doubtful]
            found, surest = search_poses(self.aligner, images[doubtful], aspects)
            canvases, seen = put_back(images[doubtful], found, aspects)
            moved = (surest > as_they_are[doubtful] + self.margin)[:, None]
            logits[doubtful] = torch.where(moved, self.aligner(canvases, seen), logits[doubtful])
            poses[doubtful] = torch.where(moved, found.values, poses[doubtful])
        return logits, Poses(poses)
