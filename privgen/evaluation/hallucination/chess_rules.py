"""Reads pictures of chess boards, and says which rules they break.

The rules are those that a single picture can break: exactly one king a side, at most 8 pawns a side, none on ranks 1
and 8, no more pieces than promotions explain, kings not beside each other, and not both kings in check. A board that
keeps them may still be out of reach of any game.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from privgen.evaluation.hallucination.chess_boards import EMPTY, PIECES, SQUARE, START, draw_square, is_in_check
from privgen.metrics.hallucination import Validation


_KINDS = EMPTY + PIECES
_OFFICERS = {"Q": 1, "R": 2, "B": 2, "N": 2}


@dataclass(frozen=True)
class ReadBoard:
    """What a picture shows.

    Attributes:
        board: 64 signs, the most similar for each square.
        unlike: numbers of the squares that are like nothing, a8 is 0.
    """

    board: str
    unlike: tuple[int, ...] = ()

    @property
    def unreadable(self) -> int:
        """Squares that are like nothing."""
        return len(self.unlike)


def read_boards(images: Tensor) -> list[ReadBoard]:
    """Compare every square with every piece.

    A square is unreadable when it is farther from its most similar piece than that is from the piece most like it.

    Args:
        images: (B, 3, 128, 128) in [0, 1].

    Raises:
        ValueError: another shape.
    """
    if images.shape[1:] != (3, 8 * SQUARE, 8 * SQUARE):
        raise ValueError(f"expected boards of 3 x {8 * SQUARE} x {8 * SQUARE}, got {tuple(images.shape[1:])}")
    templates, limits = _templates()
    squares = images.float().unfold(2, SQUARE, SQUARE).unfold(3, SQUARE, SQUARE)
    squares = squares.permute(0, 2, 3, 1, 4, 5).reshape(len(images), 64, -1)
    dark = ((torch.arange(64) // 8 + torch.arange(64)) % 2).to(images.device)
    distances = torch.cdist(squares.transpose(0, 1), templates.to(images.device)[dark])
    nearest = distances.min(2)
    allowed = limits.to(images.device)[dark].gather(1, nearest.indices)
    # What is not a number is near nothing.
    found, far = nearest.indices.T.tolist(), ~(allowed > nearest.values).T
    return [
        ReadBoard("".join(_KINDS[kind] for kind in kinds), tuple(bad.nonzero().flatten().tolist()))
        for kinds, bad in zip(found, far, strict=True)
    ]


def board_faults(board: str) -> set[str]:
    """The rules that a board of 64 signs breaks, in the words of `RULES`."""
    count = Counter(board)
    kings = {side: [i for i, piece in enumerate(board) if piece == side] for side in "Kk"}
    faults = set()
    if any(len(squares) != 1 for squares in kings.values()):
        faults.add("kings")
    elif _beside(kings["K"][0], kings["k"][0]):
        faults.add("kings beside each other")
    if max(count["P"], count["p"]) > 8:
        faults.add("pawns")
    if set(board[:8] + board[56:]) & {"P", "p"}:
        faults.add("pawn ranks")
    if any(_promoted(count, upper=upper) > 8 - count["P" if upper else "p"] for upper in (True, False)):
        faults.add("pieces")
    if is_in_check(board, True) and is_in_check(board, False):
        faults.add("both in check")
    return faults


def offending_squares(read: ReadBoard) -> set[int]:
    """Squares without which a board would break no rule, or fewer: a king that is missing is nowhere.

    Returns:
        Numbers of squares, a8 is 0: those that cannot be read, all kings of a side that has several, all pawns of a
        side that has too many, pawns on ranks 1 and 8, pieces that are more than promotions explain, and both kings
        where they are beside each other or both in check.
    """
    board, faults, marked = read.board, board_faults(read.board), set(read.unlike)
    count = Counter(board)
    for side in (PIECES[:6], PIECES[6:]):
        king, pawn = side[0], side[5]
        officers = {piece for piece in side[1:5] if count[piece] > _OFFICERS[piece.upper()]}
        too_many = _promoted(count, upper=side.isupper()) > 8 - count[pawn]
        wrong = {king} if count[king] > 1 else set()
        wrong |= {pawn} if count[pawn] > 8 else set()
        wrong |= officers if too_many else set()
        marked |= {square for square, piece in enumerate(board) if piece in wrong}
        marked |= {square for square, piece in enumerate(board) if piece == pawn and square // 8 in (0, 7)}
    if faults & {"kings beside each other", "both in check"}:
        marked |= {square for square, piece in enumerate(board) if piece in "Kk"}
    return marked


RULES = ("kings", "pawns", "pawn ranks", "pieces", "kings beside each other", "both in check")


def validate_boards(images: Tensor) -> Validation:
    """Which boards break a rule, or have a square that cannot be read.

    Args:
        images: (B, 3, 128, 128) in [0, 1].

    Returns:
        The rules of `RULES`, and "unreadable". The reader's error on drawn boards is 0: a square has one drawing.
    """
    read = read_boards(images)
    faults = [board_faults(found.board) for found in read]
    broken = {rule: torch.tensor([rule in found for found in faults], dtype=torch.bool) for rule in RULES}
    broken["unreadable"] = torch.tensor([found.unreadable > 0 for found in read], dtype=torch.bool)
    return Validation(broken, 0.0)


def count_left(images: Tensor) -> Tensor:
    """How many squares have lost the piece that a game starts with there, (B,) from 0 to 32; argument as above."""
    homes = [(square, piece) for square, piece in enumerate(START) if piece != EMPTY]
    return torch.tensor([sum(read.board[at] != piece for at, piece in homes) for read in read_boards(images)])


@cache
def _templates() -> tuple[Tensor, Tensor]:
    """Squares by (dark, kind), (2, 13, 768), and how far each is from the next one, (2, 13)."""
    drawn = [[draw_square(kind, dark=dark).ravel() for kind in _KINDS] for dark in (False, True)]
    templates = torch.from_numpy(np.array(drawn))
    apart = torch.cdist(templates, templates) + 1e9 * torch.eye(len(_KINDS))
    return templates, apart.min(2).values


def _promoted(count: Counter[str], *, upper: bool) -> int:
    """Pieces beyond those that a side begins with."""
    names = {piece if upper else piece.lower(): number for piece, number in _OFFICERS.items()}
    return sum(max(count[piece] - number, 0) for piece, number in names.items())


def _beside(a: int, b: int) -> bool:
    return max(abs(a // 8 - b // 8), abs(a % 8 - b % 8)) <= 1
