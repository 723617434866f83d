"""Marks in images that were cut out of what was marked, or turned.

An image is first read as it is. If that does not tell, each key's message is looked for at a grid of places: angles of
the whole canvas, and cut-outs that are not turned; and from the best one uphill. If that does not tell either, it is
looked for in cut-outs that are turned. These readings share the false-positive rate: half of it goes to the image as
it is, since most are neither cut out nor turned, and a quarter to each search.

What is climbed is the correlation of message and logits, so that an image is tried at many places for each key, and
one of them matches by chance more easily: p-values are multiplied by their number, `places_of` (Bonferroni). That is
strict for the grid. The steps uphill choose where to go by the key, so that they find more than they visit: they
count `UPHILL` times the grid, which `benchmarks/search_calibration.py` measures. On the way the aligner reads quickly;
at the place where a way ends it reads all that it can. Where the best place of the grid is no better than those of
most unmarked images nothing is climbed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from privgen.models.aligner import Aligner, whole
from privgen.models.extractor import Extractor
from privgen.models.mappers import signs
from privgen.watermark.read.bits import weigh_bits
from privgen.watermark.read.p_values import Test, p_values_of
from privgen.watermark.read.pose import Poses, put_back


_SIDES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)
_DEGREES = tuple(range(-45, 46, 5))
_CANVAS, _PATCH = 128, 8  # pixels: of the canvas, of a latent
_SPACING, _TURNED_SPACING = 4, 8  # pixels between places that are tried first
_COARSE = (0.02, 0.03, 2.5)  # steps of side, place and degrees, up the hills of turned cut-outs, and then
_STEPS = ((0.012, 0.016, 2.0), (0.006, 0.008, 1.0), (0.003, 0.004, 0.5))
_ROUNDS = 2  # with each of these
_CLIMBED = 3  # keys, the best ones of an image
_WORTH_CLIMBING = 3.2  # standard deviations of the correlation; the best of the grid by chance is 2 to 3.5
_TURNED = tuple(degrees for degrees in _DEGREES if degrees)  # of cut-outs
_AT_ONCE, _AT_ONCE_CPU = 64, 8  # images that are encoded at a time; on a CPU so few that they stay in its cache
_HILLS = 2  # that are climbed for each key, those of turned cut-outs
_FOUND = 1e-3  # p-values from which on the place is known, however strict the rate is that is asked for
SEARCH = 3
"""Of how images are searched: a log that holds results of another number is not taken up."""
WHOLE, SEARCHED = 2, 4
"""What p-values of images as they are, and of each of the two searches, are multiplied by: one over its part."""
UPHILL = 16
"""How many places the best one near a place of the grid is worth; measured, see the module."""


@dataclass(frozen=True, eq=False)
class Found:
    """What B images say about K keys, each where it matches best.

    Attributes:
        logits: (B, K, n_bits).
        poses: (B, K, 4), as in `Poses`.
        places: (B, K), what p-values are to be multiplied by.
        p: (B, K), p-values multiplied by that; not by the number of keys.
    """

    logits: Tensor
    poses: Tensor
    places: NDArray[np.int64]
    p: NDArray[np.float64]

    def replace_where_better(
        self, rows: NDArray[np.int64], logits: Tensor, poses: Tensor, p: NDArray[np.float64], places: int
    ) -> None:
        """Take over what is less likely by chance in some of the images (R,), for whose logits (R, K, n_bits)."""
        for i, row in enumerate(rows):
            better = np.flatnonzero(p[i] < self.p[row])
            self.logits[row, better], self.poses[row, better] = logits[i, better], poses[i, better]
            self.p[row, better], self.places[row, better] = p[i, better], places


@dataclass(frozen=True, eq=False)
class AlignedReader:
    """Reads images as they are, and then at other places.

    Attributes:
        extractor: reads images as they are.
        aligner: reads the others, put back to where they may come from.
    """

    extractor: Extractor
    aligner: Aligner

    @torch.no_grad()
    def __call__(
        self, images: Tensor, messages: Tensor, *, fpr: float, aspect: Tensor | float = 1.0, test: Test = "weighted"
    ) -> Found:
        """Look for keys in images.

        Args:
            images: (B, 3, S, S) in [0, 1], squeezed to the reader's size.
            messages: (K, n_bits) of 0 and 1; or (B, K, n_bits), other keys for each image.
            fpr: images in which a key is found at this rate as they are, corrected for all, are not searched.
            aspect: width by height of the images before they were squeezed; (B,) or one for all.
            test: see `privgen.watermark.read.p_values`.
        """
        messages = messages.expand(len(images), -1, -1)
        keys = messages.shape[1]
        logits = self.extractor(images).float()
        found = Found(
            logits[:, None].repeat(1, keys, 1),
            Poses.of().values.to(images).repeat(len(images), keys, 1),
            np.full((len(images), keys), WHOLE),
            WHOLE * np.stack([_p_values(*row, test) for row in zip(logits[:, None], messages, strict=True)]),
        )
        aspects = torch.as_tensor(aspect, dtype=images.dtype).expand(len(images))
        for turned in (False, True):
            places = SEARCHED * places_of(turned)
            enough = max(fpr, _FOUND) if turned else fpr
            doubtful = torch.from_numpy(np.flatnonzero(keys * found.p.min(axis=1) > enough))
            for shape in aspects[doubtful].unique().tolist():
                rows = doubtful[aspects[doubtful] == shape]
                wanted = signs(messages[rows]).to(images)
                logits, poses = search(self.aligner, images[rows], wanted, shape, turned=turned)
                p = [_p_own(*image, test) for image in zip(logits, messages[rows], strict=True)]
                found.replace_where_better(rows.numpy(), logits, poses, places * np.stack(p), places)
        return found


def _p_values(logits: Tensor, messages: Tensor, test: Test) -> NDArray[np.float64]:
    """(K,), of one image's logits (1, n_bits)."""
    return p_values_of(weigh_bits(logits), messages, test)[0]


def _p_own(logits: Tensor, messages: Tensor, test: Test) -> NDArray[np.float64]:
    """(K,), of logits (K, n_bits) that were read for one message each."""
    return np.concatenate([_p_values(*pair, test) for pair in zip(logits[:, None], messages[:, None], strict=True)])


@torch.no_grad()
def search(
    reader: Aligner, images: Tensor, messages: Tensor, aspect: float = 1.0, *, turned: bool = False
) -> tuple[Tensor, Tensor]:
    """For each key the place at which what is read correlates best with its message.

    Args:
        reader: of images put back.
        images: (B, 3, S, S) in [0, 1].
        messages: (K, n_bits) of -1 and 1; or (B, K, n_bits), other keys for each image.
        aspect: width by height of the images before they were squeezed to squares.
        turned: look for cut-outs that are turned, and for nothing else.

    Returns:
        Logits there (B, K, n_bits), and poses (B, K, 4).
    """
    messages = messages.expand(len(images), -1, -1)
    groups = list((_turned_hills if turned else _straight_hill)(reader, images, messages, aspect))
    best = _Best(messages)
    for group in groups:
        best.merge(group)
    for key in best.leading(_CLIMBED):
        rows = (best.of(key) >= _WORTH_CLIMBING).nonzero()[:, 0]
        if not len(rows):
            break  # the next keys are worse
        some, message = images[rows], messages[rows, key[rows]]
        starts = [start[rows] for start in _starts(groups, key, _HILLS)]
        top = _Best(message[:, None])
        for start in starts:
            top.merge(_uphill(reader, some, aspect, start, message, (_COARSE,) if turned else _STEPS))
        if turned:
            top = _uphill(reader, some, aspect, top.poses[:, 0], message, _STEPS)
        _, logits = _read(reader, some, top.poses[None, :, 0], aspect)
        best.set_result(rows, key[rows], logits[0], top.poses[:, 0])
    return best.logits, best.poses


def _straight_hill(reader: Aligner, images: Tensor, messages: Tensor, aspect: float) -> Iterator["_Best"]:
    """The best places among angles of the whole canvas, and cut-outs that are not turned: one group."""
    group = _Best(messages)
    whole_canvas = torch.cat([Poses.of(degrees=float(degrees)).values for degrees in _DEGREES])
    whole_canvas = whole_canvas[:, None].expand(-1, len(images), -1).to(images)
    group.keep(*_read(reader, images, whole_canvas, aspect, quick=True))
    for side in _SIDES:
        for values, logits in _cut_outs(reader, images, aspect, side, 0):
            group.keep(values, logits)
    yield group


def _turned_hills(reader: Aligner, images: Tensor, messages: Tensor, aspect: float) -> Iterator["_Best"]:
    """The best places among cut-outs that are turned: a group for each angle."""
    for degrees in _TURNED:
        group = _Best(messages)
        for side in _SIDES:
            for values, logits in _cut_outs(reader, images, aspect, side, degrees):
                group.keep(values, logits)
        yield group


class _Best:
    """The best places so far, by image and key.

    Args:
        messages: (B, K, n_bits) of -1 and 1.
    """

    def __init__(self, messages: Tensor) -> None:
        self.messages = messages
        self.score = torch.full_like(messages[..., 0], -torch.inf)
        self.logits = torch.zeros_like(messages)
        self.poses = torch.zeros_like(messages[..., :4])

    def keep(self, values: Tensor, logits: Tensor) -> None:
        """Take over what correlates better at some of P places (P, B, 4), where logits are (P, B, n_bits)."""
        scores = torch.einsum("pbn,bkn->pbk", logits, self.messages) / logits.norm(dim=2, keepdim=True).clamp(min=1e-9)
        score, place = scores.max(dim=0)
        rows = _rows(place)[:, None]
        self._take(score, logits[place, rows], values[place, rows], score > self.score)

    def merge(self, other: "_Best") -> None:
        """Take over what is better elsewhere."""
        self._take(other.score, other.logits, other.poses, other.score > self.score)

    def of(self, key: Tensor) -> Tensor:
        """Scores (B,) of one key (B,) an image."""
        return self.score[_rows(key), key]

    def set_result(self, rows: Tensor, key: Tensor, logits: Tensor, poses: Tensor) -> None:
        """Take over logits (R, n_bits) and poses (R, 4) of one key (R,) in some of the images, rows (R,)."""
        self.logits[rows, key], self.poses[rows, key] = logits, poses

    def _take(self, score: Tensor, logits: Tensor, poses: Tensor, better: Tensor) -> None:
        self.score = torch.where(better, score, self.score)
        self.logits = torch.where(better[..., None], logits, self.logits)
        self.poses = torch.where(better[..., None], poses, self.poses)

    def leading(self, count: int) -> Iterator[Tensor]:
        """The best keys of each image, the first ones (B,), then the second ones."""
        yield from self.score.topk(min(count, self.score.shape[1]), dim=1).indices.T


def _rows(tensor: Tensor) -> Tensor:
    return torch.arange(len(tensor), device=tensor.device)


def _starts(groups: Sequence[_Best], key: Tensor, count: int) -> Iterator[Tensor]:
    """The best places (B, 4) of the best groups for one key an image."""
    rows = _rows(key)
    scores = torch.stack([group.score[rows, key] for group in groups])
    poses = torch.stack([group.poses[rows, key] for group in groups])
    for chosen in scores.topk(min(count, len(groups)), dim=0).indices:
        yield poses[chosen, rows]


def _uphill(
    reader: Aligner,
    images: Tensor,
    aspect: float,
    start: Tensor,
    message: Tensor,
    steps: Sequence[tuple[float, ...]],
) -> _Best:
    """The best place near a start (B, 4), for one message (B, n_bits) an image; two rounds with each of the steps."""
    best = _Best(message[:, None])
    best.keep(*_read(reader, images, start[None], aspect, quick=True))
    for step in [step for step in steps for _ in range(_ROUNDS)]:
        around = best.poses[:, 0] + _neighbours(*step).to(images)[:, None]
        best.keep(*_read(reader, images, around, aspect, quick=True))
    return best


def _read(
    reader: Aligner, images: Tensor, values: Tensor, aspect: float, *, quick: bool = False
) -> tuple[Tensor, Tensor]:
    """Places (P, B, 4) as they are, and logits there (P, B, n_bits)."""
    logits, at_once = [], _AT_ONCE_CPU if images.device.type == "cpu" else _AT_ONCE
    for some in values.split(max(1, at_once // len(images))):
        canvases, seen = put_back(images.repeat(len(some), 1, 1, 1), Poses(some.flatten(0, 1)), aspect)
        logits.append(reader(canvases, seen, quick=quick).float().unflatten(0, some.shape[:2]))
    return values, torch.cat(logits)


def _neighbours(side: float, place: float, degrees: float) -> Tensor:
    """Changes (8, 4) of a pose: a window grows about its centre."""
    rows = [[side, -side / 2, -side / 2, 0], [0, place, 0, 0], [0, 0, place, 0], [0, 0, 0, degrees]]
    changes = torch.tensor(rows)
    return torch.cat([changes, -changes])


def _corners(side: float, turned: bool) -> Iterator[tuple[tuple[int, int], list[tuple[int, int]]]]:
    """Upper left corners of windows: pixels within a latent, and shifts by whole latents from there."""
    spacing = _TURNED_SPACING if turned else _SPACING
    last = (1 - side) * _CANVAS + spacing / 2
    within, whole = range(0, _PATCH, spacing), range(_CANVAS // _PATCH)
    for corner in product(within, within):
        shifts = product(whole, whole)
        yield corner, [s for s in shifts if max(c + _PATCH * d for c, d in zip(corner, s, strict=True)) <= last]


def _cut_outs(
    reader: Aligner, images: Tensor, aspect: float, side: float, degrees: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Windows of one side, turned by one angle, at all places of a grid: poses (P, B, 4) and logits (P, B, n_bits).

    Moving a window by whole latents moves what the encoder makes of it, so that it encodes only a few.
    """
    for (row, column), shifts in _corners(side, degrees != 0):
        middle = shifts[len(shifts) // 2]
        top, left = ((start + _PATCH * shift) / _CANVAS for start, shift in zip((row, column), middle, strict=True))
        base = Poses.of(side=side, left=left, top=top, degrees=float(degrees))
        canvases, seen = put_back(images, base.expand(len(images)), aspect)
        latents = reader.encode(canvases)
        cells = whole(seen[:1], (latents.shape[2], latents.shape[3])).view(1, 1, *latents.shape[2:]).float()
        moved, inside, changes = [], [], []
        for down, right in ((y - middle[0], x - middle[1]) for y, x in shifts):
            # What comes in from beyond the edge was not seen.
            by = (right, -right, down, -down)
            moved.append(pad(latents, by))
            inside.append(pad(cells, by).flatten())
            changes.append([0, right * _PATCH / _CANVAS, down * _PATCH / _CANVAS, 0])
        values = (base.values + torch.tensor(changes))[:, None].expand(-1, len(images), -1)
        yield values.to(images), reader.read_alike(torch.stack(moved), torch.stack(inside), quick=True).float()


def places_of(turned: bool) -> int:
    """What a p-value is multiplied by: places at which a key is looked for in an image, those uphill included."""
    cut_outs = sum(len(shifts) for side in _SIDES for _, shifts in _corners(side, turned))
    return UPHILL * (len(_TURNED) * cut_outs if turned else len(_DEGREES) + cut_outs)
