"""Images of chess boards: legal positions from random play, drawn with the chess symbols of a free font.

A board is a string of 64 signs from a8 to h1, row by row, as in Forsyth-Edwards notation (FEN): capitals are white,
"." is an empty square.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont


START = "rnbqkbnr" + "p" * 8 + "." * 32 + "P" * 8 + "RNBQKBNR"
PIECES = "KQRBNPkqrbnp"
EMPTY = "."
SQUARE = 16
"""Side of a square in pixels."""
MAX_PLIES = 100
"""Most moves of a random game, of both sides together."""

_ROOK = ((-1, 0), (1, 0), (0, -1), (0, 1))
_BISHOP = ((-1, -1), (-1, 1), (1, -1), (1, 1))
_KNIGHT = ((-2, -1), (-2, 1), (-1, -2), (-1, 2), (1, -2), (1, 2), (2, -1), (2, 1))
_DIRECTIONS = {"r": _ROOK, "b": _BISHOP, "q": _ROOK + _BISHOP, "k": _ROOK + _BISHOP, "n": _KNIGHT}

_LIGHT, _DARK = (205, 175, 130), (125, 90, 60)
_WHITE, _BLACK = (255, 255, 255), (10, 10, 10)
_SYMBOLS = dict(zip("kqrbnp", "\u265a\u265b\u265c\u265d\u265e\u265f", strict=True))


@dataclass(frozen=True)
class Position:
    """A position of a game.

    Attributes:
        board: 64 signs.
        white_to_move: whose turn it is.
        halfmove_clock: moves of both sides since the last capture or pawn move.
        fullmove_number: number of the move, counted from 1 and raised after each move of black.
    """

    board: str = START
    white_to_move: bool = True
    halfmove_clock: int = 0
    fullmove_number: int = 1

    @property
    def fen(self) -> str:
        """The position in Forsyth-Edwards notation; these games know neither castling nor capturing en passant."""
        rows = "/".join(_fen_row(self.board[i : i + 8]) for i in range(0, 64, 8))
        return f"{rows} {'w' if self.white_to_move else 'b'} - - {self.halfmove_clock} {self.fullmove_number}"


def random_position(seed: int, index: int, *, max_plies: int = MAX_PLIES) -> Position:
    """Draw a legal position: random legal moves from the start, without castling and capturing en passant.

    Args:
        seed: of a set of positions.
        index: number of the position in the set.
        max_plies: most moves of both sides together; every number of moves from 0 to this is equally likely.
    """
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    position = Position()
    for _ in range(int(rng.integers(max_plies + 1))):
        moves = list(pseudo_legal_moves(position.board, position.white_to_move))
        candidates = (_after_move(position, *moves[i]) for i in rng.permutation(len(moves)))
        legal = next((p for p in candidates if not is_in_check(p.board, position.white_to_move)), None)
        if legal is None:  # checkmate or stalemate
            break
        position = legal
    return position


def pseudo_legal_moves(board: str, white: bool) -> Iterator[tuple[int, int, str]]:
    """The moves of one side, also those that leave its own king in check.

    Args:
        board: 64 signs.
        white: the side.

    Yields:
        The square that a piece leaves, the square that it goes to, and the piece that stands there afterwards.
    """
    for square, piece in enumerate(board):
        if piece == EMPTY or piece.isupper() != white:
            continue
        targets = _pawn_moves(board, square, white) if piece in "pP" else _attacked_squares(board, square)
        for target in targets:
            if board[target] != EMPTY and board[target].isupper() == white:
                continue
            if piece in "pP" and target // 8 in (0, 7):
                yield from ((square, target, new if white else new.lower()) for new in "QRBN")
            else:
                yield square, target, piece


def is_in_check(board: str, white: bool) -> bool:
    """Whether the other side attacks a king of this side."""
    king = "K" if white else "k"
    attackers = [i for i, piece in enumerate(board) if piece != EMPTY and piece.isupper() != white]
    return any(board[target] == king for square in attackers for target in _attacked_squares(board, square))


def draw_board(board: str) -> NDArray[np.float32]:
    """Draw a board of 64 signs, (3, 128, 128) in [0, 1]."""
    pixels = np.empty((3, 8 * SQUARE, 8 * SQUARE), np.float32)
    for square, piece in enumerate(board):
        row, column = divmod(square, 8)
        y, x = row * SQUARE, column * SQUARE
        pixels[:, y : y + SQUARE, x : x + SQUARE] = draw_square(piece, dark=bool((row + column) % 2))
    return pixels


@cache
def draw_square(piece: str, *, dark: bool) -> NDArray[np.float32]:
    """Draw a square with a piece or without, (3, 16, 16) in [0, 1], read-only."""
    image = Image.new("RGB", (SQUARE, SQUARE), _DARK if dark else _LIGHT)
    if piece != EMPTY:
        symbol, font = _SYMBOLS[piece.lower()], _font()
        left, top, right, bottom = font.getbbox(symbol)
        corner = ((SQUARE - right - left) / 2, (SQUARE - bottom - top) / 2)
        ImageDraw.Draw(image).text(corner, symbol, font=font, fill=_WHITE if piece.isupper() else _BLACK)
    pixels = np.asarray(image, dtype=np.float32).transpose(2, 0, 1) / np.float32(255)
    pixels.setflags(write=False)
    return pixels


@cache
def _font() -> ImageFont.FreeTypeFont:
    # Matplotlib ships DejaVu Sans, a free font.
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), SQUARE)


def _attacked_squares(board: str, square: int) -> Iterator[int]:
    """Squares that the piece on a square attacks, whatever stands on them."""
    piece = board[square].lower()
    if piece == "p":
        up = -1 if board[square].isupper() else 1
        steps: tuple[tuple[int, int], ...] = ((up, -1), (up, 1))
    else:
        steps = _DIRECTIONS[piece]
    for down, right in steps:
        row, column = divmod(square, 8)
        while True:
            row, column = row + down, column + right
            if not (0 <= row < 8 and 0 <= column < 8):
                break
            yield 8 * row + column
            if piece in "knp" or board[8 * row + column] != EMPTY:
                break


def _pawn_moves(board: str, square: int, white: bool) -> Iterator[int]:
    ahead = -8 if white else 8
    if board[square + ahead] == EMPTY:
        yield square + ahead
        at_home = square // 8 == (6 if white else 1)
        if at_home and board[square + 2 * ahead] == EMPTY:
            yield square + 2 * ahead
    yield from (target for target in _attacked_squares(board, square) if board[target] != EMPTY)


def _after_move(position: Position, source: int, target: int, piece: str) -> Position:
    squares = list(position.board)
    resets_clock = squares[target] != EMPTY or squares[source] in "pP"
    squares[source], squares[target] = EMPTY, piece
    return Position(
        "".join(squares),
        not position.white_to_move,
        0 if resets_clock else position.halfmove_clock + 1,
        position.fullmove_number + (not position.white_to_move),
    )


def _fen_row(row: str) -> str:
    """A row of signs with runs of empty squares replaced by their length."""
    for count in range(8, 0, -1):
        row = row.replace(EMPTY * count, str(count))
    return row
