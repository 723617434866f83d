"""Read images of chess boards, and find the rules that they break.

A single image can break these rules: each side has exactly one king and at most 8 pawns; no pawn stands on rank 1 or
8; no side has more pieces than promotions explain; the kings are not next to each other and not both in check. A board
that keeps all of them may still be out of reach of any game.
"""

from collections import Counter
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

from privgen.evaluation.hallucination.chess_boards import EMPTY, PIECES, SQUARE, START, draw_square, is_in_check
from privgen.metrics.hallucination import Validation


RULES = ("kings", "pawns", "pawn ranks", "pieces", "kings beside each other", "both in check")
"""Names of the rules, as in the records."""

_SIGNS = EMPTY + PIECES
_AT_START = {"Q": 1, "R": 2, "B": 2, "N": 2}


@dataclass(frozen=True)
class ReadBoard:
    """The board that an image shows.

    Attributes:
        board: 64 signs, for each square the one whose drawing is most similar.
        unreadable: the squares that resemble no drawing, numbered from a8 = 0 to h1 = 63.
    """

    board: str
    unreadable: tuple[int, ...] = ()


def read_boards(images: Tensor) -> list[ReadBoard]:
    """Read boards by comparing every square with the drawing of every piece.

    A square is unreadable if it is farther from its nearest drawing than that drawing is from the one nearest to it.

    Args:
        images: (B, 3, 128, 128) in [0, 1].

    Raises:
        ValueError: the images have another shape.
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
    # Written so that NaN, which compares false with everything, counts as unreadable.
    found, far = nearest.indices.T.tolist(), ~(allowed > nearest.values).T
    return [
        ReadBoard("".join(_SIGNS[kind] for kind in kinds), tuple(bad.nonzero().flatten().tolist()))
        for kinds, bad in zip(found, far, strict=True)
    ]


def board_faults(board: str) -> set[str]:
    """The rules that a board of 64 signs breaks, as `RULES` names them."""
    count = Counter(board)
    kings = {side: [i for i, piece in enumerate(board) if piece == side] for side in "Kk"}
    faults = set()
    if any(len(squares) != 1 for squares in kings.values()):
        faults.add("kings")
    elif _are_adjacent(kings["K"][0], kings["k"][0]):
        faults.add("kings beside each other")
    if max(count["P"], count["p"]) > 8:
        faults.add("pawns")
    if set(board[:8] + board[56:]) & {"P", "p"}:
        faults.add("pawn ranks")
    if any(_promoted(count, white=white) > 8 - count["P" if white else "p"] for white in (True, False)):
        faults.add("pieces")
    if is_in_check(board, True) and is_in_check(board, False):
        faults.add("both in check")
    return faults


def offending_squares(read: ReadBoard) -> set[int]:
    """The squares that break a rule. A missing king breaks one too, but stands nowhere.

    Returns:
        Squares numbered from a8 = 0 to h1 = 63: all that are unreadable, all kings of a side with several, all pawns
        of a side with too many, pawns on ranks 1 and 8, kinds of pieces that promotions do not explain, and both kings
        if they are next to each other or both in check.
    """
    board, faults, offending = read.board, board_faults(read.board), set(read.unreadable)
    count = Counter(board)
    for side in (PIECES[:6], PIECES[6:]):
        king, pawn = side[0], side[5]
        wrong = {king} if count[king] > 1 else set()
        wrong |= {pawn} if count[pawn] > 8 else set()
        if _promoted(count, white=side.isupper()) > 8 - count[pawn]:
            wrong |= {piece for piece in side[1:5] if count[piece] > _AT_START[piece.upper()]}
        offending |= {square for square, piece in enumerate(board) if piece in wrong}
        offending |= {square for square, piece in enumerate(board) if piece == pawn and square // 8 in (0, 7)}
    if faults & {"kings beside each other", "both in check"}:
        offending |= {square for square, piece in enumerate(board) if piece in "Kk"}
    return offending


def validate_boards(images: Tensor) -> Validation:
    """Find the boards that break a rule or have an unreadable square.

    Args:
        images: (B, 3, 128, 128) in [0, 1].

    Returns:
        The rules of `RULES`, and "unreadable". The reader error is 0: it makes no error on drawn boards.
    """
    read = read_boards(images)
    faults = [board_faults(found.board) for found in read]
    broken = {rule: torch.tensor([rule in found for found in faults], dtype=torch.bool) for rule in RULES}
    broken["unreadable"] = torch.tensor([bool(found.unreadable) for found in read], dtype=torch.bool)
    return Validation(broken, 0.0)


def count_moved_pieces(images: Tensor) -> Tensor:
    """How many pieces have left the square on which a game starts them, (B,) from 0 to 32.

    Args:
        images: (B, 3, 128, 128) in [0, 1].
    """
    homes = [(square, piece) for square, piece in enumerate(START) if piece != EMPTY]
    return torch.tensor([sum(read.board[at] != piece for at, piece in homes) for read in read_boards(images)])


@cache
def _templates() -> tuple[Tensor, Tensor]:
    """Drawings by colour of the square and sign, (2, 13, 768), and their distances to the nearest other, (2, 13)."""
    drawn = [[draw_square(sign, dark=dark).ravel() for sign in _SIGNS] for dark in (False, True)]
    templates = torch.from_numpy(np.array(drawn))
    apart = torch.cdist(templates, templates) + 1e9 * torch.eye(len(_SIGNS))
    return templates, apart.min(2).values


def _promoted(count: Counter[str], *, white: bool) -> int:
    """How many pieces a side has beyond those that it starts with."""
    names = {piece if white else piece.lower(): number for piece, number in _AT_START.items()}
    return sum(max(count[piece] - number, 0) for piece, number in names.items())


def _are_adjacent(a: int, b: int) -> bool:
    return max(abs(a // 8 - b // 8), abs(a % 8 - b % 8)) <= 1
