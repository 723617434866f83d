"""Marks in images that were cut out of what was marked, or turned.

Each key's message is looked for at a grid of places, and from the best one uphill. What is climbed is the correlation
of message and logits, so that an image is tried at many places for each key, and one of them matches by chance more
easily: p-values are multiplied by their number, `PLACES` (Bonferroni). That is strict for the grid; the steps uphill
choose among more places than they visit, but all of these are near each other and so far from independent that the
result is still on the safe side (docs/watermark.md). An image is first read as it is. Both readings share the
false-positive rate half and half.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privgen.models.watermark import Extractor, signs
from privgen.watermark.alignment import Poses, put_back
from privgen.watermark.detection import count_matches, p_value, read_bits


_SIDES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_DEGREES = tuple(range(-45, 46, 5))
_CANVAS, _PATCH, _SPACING = 128, 8, 4  # pixels: of the canvas, of a latent, between places that are tried first
_STEPS = ((0.012, 0.016, 2.0), (0.006, 0.008, 1.0))  # of side, place and degrees, uphill
_ROUNDS = 2  # with each of these
_CLIMBED = 3  # keys, the best ones of an image


@dataclass(frozen=True, eq=False)
class Found:
    """What B images say about K keys, each where it matches best.

    Attributes:
        logits: (B, K, n_bits).
        poses: (B, K, 4), as in `Poses`.
        places: (B, K), what p-values are to be multiplied by.
    """

    logits: Tensor
    poses: Tensor
    places: NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class AlignedReader:
    """Reads images as they are, and then at other places.

    Attributes:
        extractor: reads images as they are.
        aligner: an `Extractor` that was trained on images put back; reads the others.
    """

    extractor: Extractor
    aligner: Extractor

    @torch.no_grad()
    def __call__(self, images: Tensor, messages: Tensor, *, fpr: float, aspect: Tensor | float = 1.0) -> Found:
        """Look for keys in images.

        Args:
            images: (B, 3, S, S) in [0, 1], squeezed to the reader's size.
            messages: (K, n_bits) of 0 and 1.
            fpr: images in which a key is found at this rate as they are, corrected for all, are not searched.
            aspect: width by height of the images before they were squeezed; (B,) or one for all.
        """
        n_bits, keys = messages.shape[1], len(messages)
        logits = self.extractor(images).float()
        found = Found(
            logits[:, None].repeat(1, keys, 1),
            Poses.of().values.to(images).repeat(len(images), keys, 1),
            np.full((len(images), keys), 2),
        )
        p = p_value(count_matches(read_bits(logits), messages), n_bits)
        doubtful = np.flatnonzero(2 * keys * p.min(axis=1) > fpr)
        if len(doubtful):
            aspects = torch.as_tensor(aspect, device=images.device, dtype=images.dtype).expand(len(images))
            chosen = torch.from_numpy(doubtful).to(images.device)
            elsewhere, poses = search(self.aligner, images[chosen], signs(messages).to(images), aspects[chosen])
            own = [count_matches(read_bits(elsewhere[:, k]), messages[k]) for k in range(keys)]
            better = np.argwhere(PLACES * p_value(np.concatenate(own, axis=1), n_bits) < p[doubtful])
            for row, key in better:
                image = doubtful[row]
                found.logits[image, key], found.poses[image, key] = elsewhere[row, key], poses[row, key]
                found.places[image, key] = 2 * PLACES
        return found


@torch.no_grad()
def search(reader: Extractor, images: Tensor, messages: Tensor, aspect: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
    """For each key the place at which what is read correlates best with its message.

    Args:
        reader: trained on images put back.
        images: (B, 3, S, S) in [0, 1].
        messages: (K, n_bits) of -1 and 1.
        aspect: see `AlignedReader`.

    Returns:
        Logits there (B, K, n_bits), and poses (B, K, 4). Each key is looked for at `PLACES` places, or at fewer.
    """
    aspect = torch.as_tensor(aspect, device=images.device, dtype=images.dtype).expand(len(images))
    best = _Best(len(images), messages)
    for degrees in _DEGREES:
        values = Poses.of(degrees=float(degrees)).expand(len(images)).values.to(images)
        best.keep(values, _read(reader, images, values, aspect))
    for side in _SIDES:
        for values, logits in _cut_outs(reader, images, side):
            best.keep(values, logits)
    for key in best.leading(_CLIMBED):
        for steps in [steps for steps in _STEPS for _ in range(_ROUNDS)]:
            start = best.poses[torch.arange(len(images)), key].clone()
            for change in _neighbours(*steps).to(images):
                best.keep(start + change, _read(reader, images, start + change, aspect), key)
    return best.logits, best.poses


class _Best:
    """The best place so far, by image and key."""

    def __init__(self, images: int, messages: Tensor) -> None:
        keys, n_bits = messages.shape
        self.messages = messages
        self.score = torch.full((images, keys), -torch.inf, device=messages.device)
        self.logits = torch.zeros(images, keys, n_bits, device=messages.device)
        self.poses = torch.zeros(images, keys, 4, device=messages.device)

    def keep(self, values: Tensor, logits: Tensor, only: Tensor | None = None) -> None:
        """Take over a place (B, 4) where its logits (B, n_bits) correlate better, with all keys or one an image."""
        score = logits @ self.messages.T / logits.norm(dim=1, keepdim=True)
        better = score > self.score
        if only is not None:
            better &= torch.nn.functional.one_hot(only, len(self.messages)).bool()
        self.score = torch.where(better, score, self.score)
        self.logits = torch.where(better[..., None], logits[:, None], self.logits)
        self.poses = torch.where(better[..., None], values[:, None], self.poses)

    def leading(self, count: int) -> Iterator[Tensor]:
        """The best keys of each image, the first ones (B,), then the second ones."""
        yield from self.score.topk(min(count, self.score.shape[1]), dim=1).indices.T


def _read(reader: Extractor, images: Tensor, values: Tensor, aspect: Tensor) -> Tensor:
    canvases, seen = put_back(images, Poses(values), aspect)
    return reader(canvases, seen).float()


def _neighbours(side: float, place: float, degrees: float) -> Tensor:
    """Changes (8, 4) of a pose: a window grows about its centre."""
    rows = [[side, -side / 2, -side / 2, 0], [0, place, 0, 0], [0, 0, place, 0], [0, 0, 0, degrees]]
    changes = torch.tensor(rows)
    return torch.cat([changes, -changes])


def _corners(side: float) -> Iterator[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """Upper left corners of windows: pixels within a latent, and shifts by whole latents from there."""
    last = (1 - side) * _CANVAS + _SPACING / 2
    within, whole = range(0, _PATCH, _SPACING), range(_CANVAS // _PATCH)
    for corner in product(within, within):
        shifts = product(whole, whole)
        yield corner, [s for s in shifts if max(c + _PATCH * d for c, d in zip(corner, s, strict=True)) <= last]


def _cut_outs(reader: Extractor, images: Tensor, side: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of one side at all places of a grid, each as poses (B, 4) and logits (B, n_bits).

    Moving a window by whole latents moves what the encoder makes of it, so that it encodes only a few.
    """
    patch = images.shape[-1] * _PATCH // _CANVAS
    for (row, column), shifts in _corners(side):
        corner = Poses.of(side=side, left=column / _CANVAS, top=row / _CANVAS).expand(len(images))
        canvases, seen = put_back(images, corner)
        latents = reader.encode(canvases)
        for down, right in shifts:
            shift = torch.tensor([0, right * _PATCH / _CANVAS, down * _PATCH / _CANVAS, 0])
            moved = latents.roll((down, right), dims=(2, 3))
            inside = seen.roll((down * patch, right * patch), dims=(2, 3))
            yield (corner.values + shift).to(images), reader.logits(*reader.listen(moved, inside)).float()


PLACES = (
    len(_DEGREES)
    + sum(len(shifts) for side in _SIDES for _, shifts in _corners(side))
    + len(_neighbours(0, 0, 0)) * _ROUNDS * len(_STEPS)
)
"""Places at which a key is looked for in an image, at most."""
