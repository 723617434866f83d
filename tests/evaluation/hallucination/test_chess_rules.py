import pytest
import torch

from privgen.evaluation.hallucination.chess_boards import START, draw_board, random_position
from privgen.evaluation.hallucination.chess_rules import board_faults, read_boards, validate_boards


@pytest.fixture(scope="module")
def boards():
    return [random_position(11, i).board for i in range(20)]


def pictures(boards):
    return torch.stack([torch.from_numpy(draw_board(board)) for board in boards])


def test_reader_makes_no_error_on_real_boards(boards):
    read = read_boards(pictures(boards))
    assert [found.board for found in read] == boards
    assert not any(found.unreadable for found in read)


@pytest.mark.slow
def test_reader_makes_no_error_on_ten_thousand_squares():
    boards = [random_position(12, i).board for i in range(160)]
    validation = validate_boards(pictures(boards))
    assert [found.board for found in read_boards(pictures(boards))] == boards
    assert validation.fraction == 0


def test_reader_stands_noise_and_brightness(boards, generator):
    images = pictures(boards)
    noisy = images + 0.05 * torch.randn(images.shape, generator=generator)
    for changed in (noisy.clamp(0, 1), 0.95 * images):
        assert [found.board for found in read_boards(changed)] == boards
        assert not any(found.unreadable for found in read_boards(changed))


def test_half_a_piece_is_unreadable():
    image = pictures([START, START])
    image[1, :, 8:16, 0:16] = torch.from_numpy(draw_board("q" + "." * 63))[:, 8:16, 0:16]
    image[1, :, :16, 32:48] = 0.5
    assert [found.unreadable > 0 for found in read_boards(image)] == [False, True]
    assert validate_boards(image).hallucinated.tolist() == [False, True]


def test_legal_positions_break_no_rule(boards):
    validation = validate_boards(pictures(boards))
    assert validation.fraction == 0
    assert validation.reader_error == 0


@pytest.mark.parametrize(
    ("placed", "fault"),
    [
        ({4: "."}, {"kings"}),
        ({27: "K"}, {"kings"}),
        ({28: "p", 4: "k"}, {"pawns", "pieces"}),
        ({0: "p", 8: "."}, {"pawn ranks"}),
        ({28: "Q"}, {"pieces"}),
        ({28: "Q", 48: "."}, set()),
        ({60: ".", 59: ".", 4: ".", 43: "K", 35: "k", 11: "."}, {"kings beside each other", "both in check"}),
        ({12: ".", 52: ".", 20: "R", 44: "r", 8: ".", 48: "."}, {"both in check", "pieces"}),
    ],
)
def test_faults(placed, fault):
    board = list(START)
    for square, piece in placed.items():
        board[square] = piece
    assert board_faults("".join(board)) - {"pieces"} == fault - {"pieces"}
    assert ("pieces" in board_faults("".join(board))) == ("pieces" in fault) or len(placed) > 2


def test_shapes():
    with pytest.raises(ValueError, match=r"expected boards of 3 x 128 x 128, got \(1, 128, 128\)"):
        read_boards(torch.zeros(2, 1, 128, 128))
