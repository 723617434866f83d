"""Search for marks in images that were cut out of a marked image, or turned.

An image is first read as it is. If that finds nothing, each key's message is looked for on a grid of poses: angles of
the whole canvas, and windows that are not turned; and from the best pose uphill. If that finds nothing either, it is
looked for in windows that are turned. The three readings share the false-positive rate. Half of it goes to the image
as it is, because most images are neither cut out nor turned, and a quarter to each search.

The search climbs the correlation of message and logits. It tries each key at many poses, and one of them matches by
chance more easily. So p-values are multiplied by the number of poses, `places_of` (Bonferroni). For the grid that is
strict. The steps uphill choose where to go by the key, so they find more than they visit; they count as `UPHILL` times
the grid (`privgen evaluate calibration` measures that). On the way the aligner reads quickly, and at the end of a
way it reads as well as it can. Where the best pose of the grid is no better than in most unmarked images, nothing is
climbed.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from privgen.models.aligner import Aligner, seen_cells
from privgen.models.extractor import Extractor
from privgen.models.family import Canvas
from privgen.models.mappers import signs
from privgen.watermark.read.bits import weigh_bits
from privgen.watermark.read.p_values import Test, p_values_of
from privgen.watermark.read.pose import Poses, put_back


_SIDES = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # of the windows, in sides of the canvas
_DEGREES = tuple(range(-45, 46, 5))
_TURNED = tuple(degrees for degrees in _DEGREES if degrees)  # angles of turned windows
_SPACING, _TURNED_SPACING = 32, 16  # places of the grid along a side of the canvas
_COARSE = (0.02, 0.03, 2.5)  # first steps uphill from turned windows: side, place, degrees
_STEPS = ((0.012, 0.016, 2.0), (0.006, 0.008, 1.0), (0.003, 0.004, 0.5))
_ROUNDS = 2  # with each of these steps
CLIMBED = 3
"""Keys that are climbed for, the best of an image."""
_HILLS = 2  # starts for each key among turned windows
_WORTH_CLIMBING = 3.2  # standard deviations of the correlation; by chance the best of the grid is 2 to 3.5
_AT_ONCE, _AT_ONCE_CPU = 64, 8  # images encoded at a time; on a CPU so few that they stay in its cache
_FOUND = 1e-3  # at this p-value the pose is known, however strict the rate is that was asked for
SEARCH = 3
"""Version of the search; a log of another version is not continued."""
WHOLE, SEARCHED = 2, 4
"""Factors on the p-values of images as they are, and of each search: one over its part of the false-positive rate."""
UPHILL = 16
"""How many poses the climb from one pose of the grid counts as; measured, see the module."""


@dataclass(frozen=True, eq=False)
class Found:
    """What B images say about K keys, each at the pose where it matches best.

    Attributes:
        logits: (B, K, n_bits).
        poses: (B, K, 4), as in `Poses`.
        places: (B, K), the factors by which p-values were multiplied.
        p: (B, K), p-values multiplied by these; not by the number of keys.
    """

    logits: Tensor
    poses: Tensor
    places: NDArray[np.int64]
    p: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class AlignedReader:
    """Reads images as they are, and then at other poses.

    Attributes:
        extractor: reads images as they are.
        aligner: reads images that were put back to where they may come from.
        climbed: keys that are climbed for, the best of an image.
    """

    extractor: Extractor
    aligner: Aligner
    climbed: int = CLIMBED

    @torch.no_grad()
    def __call__(
        self, images: Tensor, messages: Tensor, *, fpr: float, aspect: Tensor | float = 1.0, test: Test = "weighted"
    ) -> Found:
        """Look for keys in images.

        Args:
            images: (B, 3, S, S) in [0, 1], resized to the reader's square.
            messages: (K, n_bits) of 0 and 1; or (B, K, n_bits), other keys for each image.
            fpr: an image in which a key is found at this rate, corrected for all keys, is not searched further.
            aspect: width by height of the images before they were resized; (B,) or one for all.
            test: see `privgen.watermark.read.p_values`.
        """
        messages = messages.expand(len(images), -1, -1)
        keys = messages.shape[1]
        read = self.extractor(images).float()
        whole = np.stack([_p_values(*row, test) for row in zip(read[:, None], messages, strict=True)])
        logits, poses = read[:, None].repeat(1, keys, 1), Poses.of().values.to(images).repeat(len(images), keys, 1)
        p, places = WHOLE * whole, np.full(whole.shape, WHOLE)
        aspects = torch.as_tensor(aspect, dtype=images.dtype).expand(len(images))
        for turned in (False, True):
            tried = SEARCHED * places_of(Canvas.of_reader(self.aligner), turned)
            enough = max(fpr, _FOUND) if turned else fpr
            doubtful = torch.from_numpy(np.flatnonzero(keys * p.min(axis=1) > enough))
            for shape in aspects[doubtful].unique().tolist():
                rows = doubtful[aspects[doubtful] == shape]
                wanted = signs(messages[rows]).to(images)
                found, where = search(self.aligner, images[rows], wanted, shape, turned=turned, climbed=self.climbed)
                for i, row in enumerate(rows.tolist()):
                    own = zip(found[i, :, None], messages[row][:, None], strict=True)
                    corrected = tried * np.concatenate([_p_values(*pair, test) for pair in own])
                    better = np.flatnonzero(corrected < p[row])
                    logits[row, better], poses[row, better] = found[i, better], where[i, better]
                    p[row, better], places[row, better] = corrected[better], tried
        return Found(logits, poses, places, p)


def _p_values(logits: Tensor, messages: Tensor, test: Test) -> NDArray[np.float64]:
    """(K,), of one image's logits (1, n_bits)."""
    return p_values_of(weigh_bits(logits), messages, test)[0]


@torch.no_grad()
def search(
    reader: Aligner,
    images: Tensor,
    messages: Tensor,
    aspect: float = 1.0,
    *,
    turned: bool = False,
    climbed: int = CLIMBED,
) -> tuple[Tensor, Tensor]:
    """For each key, find the pose at which the logits correlate best with its message.

    Args:
        reader: reads images that were put back.
        images: (B, 3, S, S) in [0, 1].
        messages: (K, n_bits) of -1 and 1; or (B, K, n_bits), other keys for each image.
        aspect: width by height of the images before they were resized to squares.
        turned: search windows that are turned, and nothing else.
        climbed: keys that are climbed for, the best of an image.

    Returns:
        Logits there (B, K, n_bits), and poses (B, K, 4).
    """
    messages = messages.expand(len(images), -1, -1)
    groups = list((_turned_groups if turned else _straight_group)(reader, images, messages, aspect))
    best = _Best(messages)
    for group in groups:
        best.merge(group)
    for key in best.leading(climbed):
        rows = (best.of(key) >= _WORTH_CLIMBING).nonzero()[:, 0]
        if not len(rows):
            break  # the next keys are worse
        some, message = images[rows], messages[rows, key[rows]]
        top = _Best(message[:, None])
        for start in [start[rows] for start in _starts(groups, key, _HILLS)]:
            top.merge(_uphill(reader, some, aspect, start, message, (_COARSE,) if turned else _STEPS))
        if turned:
            top = _uphill(reader, some, aspect, top.poses[:, 0], message, _STEPS)
        _, logits = _read(reader, some, top.poses[None, :, 0], aspect)
        best.logits[rows, key[rows]], best.poses[rows, key[rows]] = logits[0], top.poses[:, 0]
    return best.logits, best.poses


def places_of(canvas: Canvas, turned: bool) -> int:
    """The factor on p-values of a search: the poses at which it looks for a key in an image, those uphill included.

    Args:
        canvas: of the reader.
        turned: which of the two searches.
    """
    windows = sum(len(group) for side in _SIDES for group in _corners(canvas, side, turned))
    return UPHILL * (len(_TURNED) * windows if turned else len(_DEGREES) + windows)


def _straight_group(reader: Aligner, images: Tensor, messages: Tensor, aspect: float) -> Iterator["_Best"]:
    """The best poses among angles of the whole canvas, and windows that are not turned: one group."""
    group = _Best(messages)
    angles = torch.cat([Poses.of(degrees=float(degrees)).values for degrees in _DEGREES])
    group.keep(*_read(reader, images, angles[:, None].expand(-1, len(images), -1).to(images), aspect, quick=True))
    for side in _SIDES:
        for poses, logits in read_windows(reader, images, aspect, side, 0):
            group.keep(poses, logits)
    yield group


def _turned_groups(reader: Aligner, images: Tensor, messages: Tensor, aspect: float) -> Iterator["_Best"]:
    """The best poses among turned windows: a group for each angle."""
    for degrees in _TURNED:
        group = _Best(messages)
        for side in _SIDES:
            for poses, logits in read_windows(reader, images, aspect, side, degrees):
                group.keep(poses, logits)
        yield group


class _Best:
    """The best poses so far, for each image and key.

    Args:
        messages: (B, K, n_bits) of -1 and 1.
    """

    def __init__(self, messages: Tensor) -> None:
        self.messages = messages
        self.score = torch.full_like(messages[..., 0], -torch.inf)
        self.logits = torch.zeros_like(messages)
        self.poses = torch.zeros_like(messages[..., :4])

    def keep(self, poses: Tensor, logits: Tensor) -> None:
        """Keep what correlates better at some of P poses (P, B, 4), with logits (P, B, n_bits)."""
        scores = torch.einsum("pbn,bkn->pbk", logits, self.messages) / logits.norm(dim=2, keepdim=True).clamp(min=1e-9)
        score, place = scores.max(dim=0)
        rows = _rows(place)[:, None]
        self._replace(score, logits[place, rows], poses[place, rows], score > self.score)

    def merge(self, other: "_Best") -> None:
        """Keep what is better in another."""
        self._replace(other.score, other.logits, other.poses, other.score > self.score)

    def of(self, key: Tensor) -> Tensor:
        """Scores (B,) of one key (B,) for each image."""
        return self.score[_rows(key), key]

    def leading(self, count: int) -> Iterator[Tensor]:
        """The best keys of each image: the first ones (B,), then the second ones."""
        yield from self.score.topk(min(count, self.score.shape[1]), dim=1).indices.T

    def _replace(self, score: Tensor, logits: Tensor, poses: Tensor, where: Tensor) -> None:
        self.score = torch.where(where, score, self.score)
        self.logits = torch.where(where[..., None], logits, self.logits)
        self.poses = torch.where(where[..., None], poses, self.poses)


def _rows(tensor: Tensor) -> Tensor:
    return torch.arange(len(tensor), device=tensor.device)


def _starts(groups: Sequence[_Best], key: Tensor, count: int) -> Iterator[Tensor]:
    """The best poses (B, 4) of the best groups, for one key (B,) of each image."""
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
    """The best pose near a start (B, 4), for one message (B, n_bits) of each image."""
    best = _Best(message[:, None])
    best.keep(*_read(reader, images, start[None], aspect, quick=True))
    for step in [step for step in steps for _ in range(_ROUNDS)]:
        around = best.poses[:, 0] + _neighbours(*step).to(images)[:, None]
        best.keep(*_read(reader, images, around, aspect, quick=True))
    return best


def _read(
    reader: Aligner, images: Tensor, poses: Tensor, aspect: float, *, quick: bool = False
) -> tuple[Tensor, Tensor]:
    """Poses (P, B, 4) as they are, and logits there (P, B, n_bits)."""
    logits, at_once = [], _AT_ONCE_CPU if images.device.type == "cpu" else _AT_ONCE
    for some in poses.split(max(1, at_once // len(images))):
        canvases, seen = put_back(images.repeat(len(some), 1, 1, 1), Poses(some.flatten(0, 1)), aspect)
        logits.append(reader(canvases, seen, quick=quick).float().unflatten(0, some.shape[:2]))
    return poses, torch.cat(logits)


def _neighbours(side: float, place: float, degrees: float) -> Tensor:
    """Changes (8, 4) of a pose; a window grows about its centre."""
    rows = [[side, -side / 2, -side / 2, 0], [0, place, 0, 0], [0, 0, place, 0], [0, 0, 0, degrees]]
    changes = torch.tensor(rows)
    return torch.cat([changes, -changes])


def _corners(canvas: Canvas, side: float, turned: bool) -> list[list[tuple[int, int]]]:
    """Upper left corners of windows in pixels, on a grid; in groups that differ by whole latents."""
    spacing = max(1, canvas.size // (_TURNED_SPACING if turned else _SPACING))
    last = (1 - side) * canvas.size + spacing / 2
    along = [place for place in range(0, canvas.size, spacing) if place <= last]
    groups: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for row in along:
        for column in along:
            groups.setdefault((row % canvas.patch, column % canvas.patch), []).append((row, column))
    return list(groups.values())


def read_windows(
    reader: Aligner, images: Tensor, aspect: float, side: float, degrees: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Read images as if they were windows of one side, turned by one angle, at all places of the grid.

    When a window moves by whole latents, the latents move with it. So only a few images are encoded.

    Args:
        reader: reads images that were put back.
        images: (B, 3, S, S) in [0, 1].
        aspect: width by height of the images before they were resized to squares.
        side: of the windows, in sides of the canvas.
        degrees: by which they are turned.

    Yields:
        Poses (P, B, 4), and logits there (P, B, n_bits).
    """
    canvas = Canvas.of_reader(reader)
    for corners in _corners(canvas, side, degrees != 0):
        top, left = corners[len(corners) // 2]
        base = Poses.of(side=side, left=left / canvas.size, top=top / canvas.size, degrees=float(degrees))
        canvases, seen = put_back(images, base.expand(len(images)), aspect)
        latents = reader.encode(canvases)
        cells = seen_cells(seen[:1], (latents.shape[2], latents.shape[3])).view(1, 1, *latents.shape[2:]).float()
        moved, inside, changes = [], [], []
        for row, column in corners:
            down, right = (row - top) // canvas.patch, (column - left) // canvas.patch
            # Cells that come in from beyond the edge were not seen.
            by = (right, -right, down, -down)
            moved.append(pad(latents, by))
            inside.append(pad(cells, by).flatten())
            changes.append([0, (column - left) / canvas.size, (row - top) / canvas.size, 0])
        poses = (base.values + torch.tensor(changes))[:, None].expand(-1, len(images), -1)
        yield poses.to(images), reader.read_parts(torch.stack(moved), torch.stack(inside), quick=True).float()
