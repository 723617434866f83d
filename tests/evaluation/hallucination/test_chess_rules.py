import pytest
import torch

from privgen.evaluation.hallucination.chess_boards import START, draw_board, random_position
from privgen.evaluation.hallucination.chess_rules import (
    ReadBoard,
    board_faults,
    offending_squares,
    read_boards,
    validate_boards,
)


@pytest.fixture(scope="module")
def boards():
    return [random_position(11, i).board for i in range(20)]


def images_of(boards):
    return torch.stack([torch.from_numpy(draw_board(board)) for board in boards])


def test_reader_makes_no_error_on_real_boards(boards):
    read = read_boards(images_of(boards))
    assert [found.board for found in read] == boards
    assert not any(found.unreadable for found in read)


@pytest.mark.slow
def test_reader_makes_no_error_on_ten_thousand_squares():
    boards = [random_position(12, i).board for i in range(160)]
    validation = validate_boards(images_of(boards))
    assert [found.board for found in read_boards(images_of(boards))] == boards
    assert validation.fraction == 0


def test_reader_stands_noise_and_brightness(boards, generator):
    images = images_of(boards)
    noisy = images + 0.05 * torch.randn(images.shape, generator=generator)
    for changed in (noisy.clamp(0, 1), 0.95 * images):
        assert [found.board for found in read_boards(changed)] == boards
        assert not any(found.unreadable for found in read_boards(changed))


def test_mixed_pieces_and_grey_are_unreadable():
    image = images_of([START, START])
    # The upper half of a black rook on the lower half of a white queen.
    image[1, :, 8:16, 0:16] = torch.from_numpy(draw_board("Q" + "." * 63))[:, 8:16, 0:16]
    image[1, :, :16, 32:48] = 0.5
    assert [found.unreadable for found in read_boards(image)] == [(), (0, 2)]
    assert validate_boards(image).hallucinated.tolist() == [False, True]


def test_legal_positions_break_no_rule(boards):
    validation = validate_boards(images_of(boards))
    assert validation.fraction == 0
    assert validation.reader_error == 0


@pytest.mark.parametrize(
    ("placed", "faults", "squares"),
    [
        ({4: "."}, {"kings"}, set()),
        ({27: "K"}, {"kings"}, {27, 60}),
        ({28: "p", 4: "k"}, {"pawns", "pieces"}, {*range(8, 16), 28}),
        ({0: "p", 8: "."}, {"pawn ranks"}, {0}),
        ({28: "Q"}, {"pieces"}, {28, 59}),
        # With a pawn less, a second queen may come from a promotion.
        ({28: "Q", 48: "."}, set(), set()),
        (
            {60: ".", 59: ".", 4: ".", 43: "K", 35: "k", 11: "."},
            {"kings beside each other", "both in check"},
            {35, 43},
        ),
        ({12: ".", 52: ".", 20: "R", 44: "r", 8: ".", 48: "."}, {"both in check"}, {4, 60}),
    ],
)
def test_faults(placed, faults, squares):
    board = "".join(placed.get(square, piece) for square, piece in enumerate(START))
    assert board_faults(board) == faults
    assert offending_squares(ReadBoard(board)) == squares


def test_shapes():
    with pytest.raises(ValueError, match=r"expected boards of 3 x 128 x 128, got \(1, 128, 128\)"):
        read_boards(torch.zeros(2, 1, 128, 128))
