"""Marks in images that were cut out of what was marked, or turned.

Each key's message is looked for at a grid of places, and from the best one uphill: angles, and cut-outs that are not
turned. A thorough search looks for turned cut-outs as well, and climbs from the best places of several angles.

What is climbed is the correlation of message and logits, so that an image is tried at many places for each key, and
one of them matches by chance more easily: p-values are multiplied by their number, `places_of` (Bonferroni). That is
strict for the grid. The steps uphill choose where to go by the key, so that they find more than they visit: they
count `UPHILL` times the grid, which `benchmarks/search_calibration.py` measures. An image is first read as it is.
Both readings share the false-positive rate half and half.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from privgen.models.aligner import Aligner
from privgen.models.watermark import Extractor, signs
from privgen.watermark.alignment import Poses, put_back
from privgen.watermark.bits import weigh_bits
from privgen.watermark.detection import Test, p_values_of


_SIDES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_DEGREES = tuple(range(-45, 46, 5))
_CANVAS, _PATCH, _SPACING = 128, 8, 4  # pixels: of the canvas, of a latent, between places that are tried first
_STEPS = ((0.012, 0.016, 2.0), (0.006, 0.008, 1.0))  # of side, place and degrees, uphill
_ROUNDS = 2  # with each of these
_CLIMBED = 3  # keys, the best ones of an image
_TURNED = tuple(degrees for degrees in _DEGREES if degrees)  # of cut-outs, in a thorough search
_HILLS = 6  # that it climbs for each key
UPHILL = 16
"""How many places the best one near a place of the grid is worth; measured, see the module."""


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
        aligner: reads the others, put back to where they may come from.
        thorough: look for cut-outs that are turned, too: half a minute an image.
    """

    extractor: Extractor
    aligner: Aligner
    thorough: bool = False

    @torch.no_grad()
    def __call__(
        self, images: Tensor, messages: Tensor, *, fpr: float, aspect: Tensor | float = 1.0, test: Test = "weighted"
    ) -> Found:
        """Look for keys in images.

        Args:
            images: (B, 3, S, S) in [0, 1], squeezed to the reader's size.
            messages: (K, n_bits) of 0 and 1.
            fpr: images in which a key is found at this rate as they are, corrected for all, are not searched.
            aspect: width by height of the images before they were squeezed; (B,) or one for all.
            test: see `privgen.watermark.detection`.
        """
        keys = len(messages)
        logits = self.extractor(images).float()
        found = Found(
            logits[:, None].repeat(1, keys, 1),
            Poses.of().values.to(images).repeat(len(images), keys, 1),
            np.full((len(images), keys), 2),
        )
        p = p_values_of(weigh_bits(logits), messages, test)
        doubtful = np.flatnonzero(2 * keys * p.min(axis=1) > fpr)
        if len(doubtful):
            aspects = torch.as_tensor(aspect, device=images.device, dtype=images.dtype).expand(len(images))
            chosen = torch.from_numpy(doubtful).to(images.device)
            elsewhere, poses = search(
                self.aligner, images[chosen], signs(messages).to(images), aspects[chosen], thorough=self.thorough
            )
            places = places_of(self.thorough)
            own = [p_values_of(weigh_bits(elsewhere[:, k]), messages[k], test) for k in range(keys)]
            better = np.argwhere(places * np.concatenate(own, axis=1) < p[doubtful])
            for row, key in better:
                image = doubtful[row]
                found.logits[image, key], found.poses[image, key] = elsewhere[row, key], poses[row, key]
                found.places[image, key] = 2 * places
        return found


@torch.no_grad()
def search(
    reader: Aligner, images: Tensor, messages: Tensor, aspect: Tensor | float = 1.0, *, thorough: bool = False
) -> tuple[Tensor, Tensor]:
    """For each key the place at which what is read correlates best with its message.

    Args:
        reader: of images put back.
        images: (B, 3, S, S) in [0, 1].
        messages: (K, n_bits) of -1 and 1.
        aspect: see `AlignedReader`.
        thorough: look for cut-outs that are turned, too.

    Returns:
        Logits there (B, K, n_bits), and poses (B, K, 4).
    """
    aspect = torch.as_tensor(aspect, device=images.device, dtype=images.dtype).expand(len(images))
    groups = [_Best(len(images), messages)]
    for degrees in _DEGREES:
        values = Poses.of(degrees=float(degrees)).expand(len(images)).values.to(images)
        groups[0].keep(values, _read(reader, images, values, aspect))
    for degrees in (0, *(_TURNED if thorough else ())):
        groups.append(_Best(len(images), messages))
        for side in _SIDES:
            for values, logits in _cut_outs(reader, images, aspect, side, degrees):
                groups[-1].keep(values, logits)
    best = _Best(len(images), messages)
    for group in groups:
        best.merge(group)
    for key in best.leading(_CLIMBED):
        for start in _starts(groups, key, _HILLS if thorough else 1):
            best.merge(_uphill(reader, images, aspect, start, key, messages), key)
    return best.logits, best.poses


class _Best:
    """The best place so far, by image and key."""

    def __init__(self, images: int, messages: Tensor) -> None:
        keys, n_bits = messages.shape
        self.messages = messages
        self.score = torch.full((images, keys), -torch.inf, device=messages.device)
        self.logits = torch.zeros(images, keys, n_bits, device=messages.device)
        self.poses = torch.zeros(images, keys, 4, device=messages.device)

    def keep(self, values: Tensor, logits: Tensor) -> None:
        """Take over a place (B, 4) where its logits (B, n_bits) correlate better."""
        score = logits @ self.messages.T / logits.norm(dim=1, keepdim=True)
        self._take(score, logits[:, None], values[:, None], score > self.score)

    def merge(self, other: "_Best", only: Tensor | None = None) -> None:
        """Take over what is better elsewhere, for all keys or one an image (B,)."""
        better = other.score > self.score
        if only is not None:
            better &= torch.nn.functional.one_hot(only, len(self.messages)).bool()
        self._take(other.score, other.logits, other.poses, better)

    def _take(self, score: Tensor, logits: Tensor, poses: Tensor, better: Tensor) -> None:
        self.score = torch.where(better, score, self.score)
        self.logits = torch.where(better[..., None], logits, self.logits)
        self.poses = torch.where(better[..., None], poses, self.poses)

    def leading(self, count: int) -> Iterator[Tensor]:
        """The best keys of each image, the first ones (B,), then the second ones."""
        yield from self.score.topk(min(count, self.score.shape[1]), dim=1).indices.T


def _starts(groups: Sequence[_Best], key: Tensor, count: int) -> Iterator[Tensor]:
    """The best places (B, 4) of the best groups for one key an image."""
    rows = torch.arange(len(key), device=key.device)
    scores = torch.stack([group.score[rows, key] for group in groups])
    poses = torch.stack([group.poses[rows, key] for group in groups])
    for chosen in scores.topk(min(count, len(groups)), dim=0).indices:
        yield poses[chosen, rows]


def _uphill(reader: Aligner, images: Tensor, aspect: Tensor, start: Tensor, key: Tensor, messages: Tensor) -> _Best:
    """The best place near a start (B, 4) for one key an image."""
    rows, best = torch.arange(len(images), device=images.device), _Best(len(images), messages)
    best.keep(start, _read(reader, images, start, aspect))
    for steps in [steps for steps in _STEPS for _ in range(_ROUNDS)]:
        here = best.poses[rows, key].clone()
        for change in _neighbours(*steps).to(images):
            best.keep(here + change, _read(reader, images, here + change, aspect))
    return best


def _read(reader: Aligner, images: Tensor, values: Tensor, aspect: Tensor) -> Tensor:
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


def _cut_outs(
    reader: Aligner, images: Tensor, aspect: Tensor, side: float, degrees: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of one side, turned by one angle, at all places of a grid: poses (B, 4) and logits (B, n_bits).

    Moving a window by whole latents moves what the encoder makes of it, so that it encodes only a few.
    """
    patch = images.shape[-1] * _PATCH // _CANVAS
    for (row, column), shifts in _corners(side):
        middle = shifts[len(shifts) // 2]
        top, left = ((within + _PATCH * whole) / _CANVAS for within, whole in zip((row, column), middle, strict=True))
        base = Poses.of(side=side, left=left, top=top, degrees=float(degrees)).expand(len(images))
        canvases, seen = put_back(images, base, aspect)
        latents = reader.encode(canvases)
        for shift in shifts:
            down, right = shift[0] - middle[0], shift[1] - middle[1]
            change = torch.tensor([0, right * _PATCH / _CANVAS, down * _PATCH / _CANVAS, 0])
            # What comes in from beyond the edge was not seen.
            moved = pad(latents, (right, -right, down, -down))
            inside = pad(seen, (right * patch, -right * patch, down * patch, -down * patch))
            yield (base.values + change).to(images), reader.read(moved, inside).float()


def places_of(thorough: bool) -> int:
    """What a p-value is multiplied by: places at which a key is looked for in an image, those uphill included."""
    windows = sum(len(shifts) for side in _SIDES for _, shifts in _corners(side))
    return UPHILL * (len(_DEGREES) + windows * (1 + len(_TURNED) * thorough))
