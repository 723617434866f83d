import numpy as np
import pytest

from privgen.evaluation.hallucination.chess_boards import (
    START,
    draw_board,
    is_in_check,
    pseudo_legal_moves,
    random_position,
)


def board(fen):
    """The 64 signs of a FEN's first field."""
    for digit in "12345678":
        fen = fen.replace(digit, "." * int(digit))
    return fen.replace("/", "")


def legal(signs, white):
    """The pseudo-legal moves that leave no own king in check."""
    found = []
    for source, target, piece in pseudo_legal_moves(signs, white):
        after = list(signs)
        after[source], after[target] = ".", piece
        found += [] if is_in_check("".join(after), white) else [(source, target, piece)]
    return found


@pytest.mark.parametrize(
    ("fen", "white", "moves"),
    [
        ("rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR", True, 20),
        ("8/8/8/8/8/8/8/K6k", True, 3),
        # Kings keep away from each other; a pawn on its last step may become four pieces.
        ("8/P7/8/8/8/8/8/K1k5", True, 5),
        ("k7/8/8/8/8/8/8/R3K3", True, 15),
        # Fool's mate: nothing is left.
        ("rnb1kbnr/pppp1ppp/8/4p3/6Pq/5P2/PPPPP2P/RNBQKBNR", True, 0),
        # A pinned knight does not move.
        ("4r2k/8/8/8/8/4N3/8/4K3", True, 5),
        # Blocked pawns capture sideways only.
        ("7k/8/8/2p1p3/3p4/3P4/8/7K", False, 5),
    ],
)
def test_legal_moves(fen, white, moves):
    assert len(legal(board(fen), white)) == moves


def test_start_in_fen():
    position = next(p for p in (random_position(0, i) for i in range(500)) if p.board == START)
    assert position.fen == "rnbqkbnr/pppppppp/8/8/8/8/PPPPPPPP/RNBQKBNR w - - 0 1"


def test_positions_are_seeded():
    fens = [random_position(1, i).fen for i in range(8)]
    assert fens == [random_position(1, i).fen for i in range(8)]
    assert len({*fens, *(random_position(2, i).fen for i in range(8))}) > 12
    assert all(board(fen.split()[0]) == random_position(1, i).board for i, fen in enumerate(fens))


def test_who_has_moved_is_not_in_check():
    for i in range(40):
        position = random_position(3, i)
        assert not is_in_check(position.board, not position.white_to_move)


def test_images():
    image = draw_board(START)
    assert (image.shape, image.dtype) == ((3, 128, 128), np.float32)
    assert 0 <= image.min() <= image.max() <= 1
    # A square looks the same whatever stands elsewhere.
    assert np.array_equal(image[:, :16, :16], draw_board("r" + "." * 63)[:, :16, :16])
    squares = {draw_board(piece + "." * 63)[:, :16, :16].tobytes() for piece in ".KQRBNPkqrbnp"}
    assert len(squares) == 13
