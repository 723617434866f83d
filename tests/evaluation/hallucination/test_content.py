"""Fractions of hallucinated samples at equal content."""

import math

import numpy as np
import pytest
import torch

from privgen.data.shapes import PlacedShape, draw_shapes
from privgen.evaluation.hallucination.chess_boards import START, draw_board, random_position
from privgen.evaluation.hallucination.chess_rules import count_moved_pieces
from privgen.evaluation.hallucination.content import MAX_CONTENT, content_figures, matched_reduction, without_strata
from privgen.metrics.shapes import count_kinds


def samples(*strata):
    """Figures of `number` samples of each content, so many of them wrong: (content, number, wrong)."""
    content = torch.tensor([k for k, number, _ in strata for _ in range(number)])
    wrong = torch.tensor([i < bad for _, number, bad in strata for i in range(number)])
    return content_figures(content, wrong)


def test_less_content_alone_is_no_reduction():
    plain = samples((0, 50, 5), (3, 50, 40))
    simpler = samples((0, 90, 9), (3, 10, 8))
    assert simpler["content"] == pytest.approx(0.3)
    assert matched_reduction(simpler, plain) == pytest.approx(0)


def test_fewer_wrong_at_every_content_are_a_reduction():
    plain = samples((0, 50, 10), (3, 50, 40))
    assert matched_reduction(samples((0, 10, 1), (3, 90, 36)), plain) == pytest.approx(0.5)


def test_a_content_that_is_never_drawn_counts_as_plain():
    plain = samples((0, 50, 10), (3, 50, 40))
    assert matched_reduction(samples((0, 10, 0)), plain) == pytest.approx(1 - 0.4 / 0.5)


def test_large_contents_are_one_stratum():
    figures = samples((MAX_CONTENT, 1, 1), (MAX_CONTENT + 7, 3, 0))
    assert figures[f"wrong with content {MAX_CONTENT}"] == 0.25
    assert figures["content"] == pytest.approx(MAX_CONTENT + 7 * 3 / 4)


def test_nothing_wrong_has_no_ratio():
    assert math.isnan(matched_reduction(samples((0, 2, 1)), samples((0, 2, 0))))


def test_strata_are_left_out():
    assert set(without_strata({"hallucinated": 0.5, **samples((2, 3, 1))})) == {"hallucinated", "content"}


def test_moved_pieces():
    moved = START[:12] + "." + START[13:28] + "p" + START[29:]
    played = [random_position(3, i, max_plies=20).board for i in range(20)]
    pictures = torch.from_numpy(np.stack([draw_board(board) for board in (START, moved, *played)]))
    left = count_moved_pieces(pictures).tolist()
    assert left[:2] == [0, 1]
    expected = [sum(now != then for now, then in zip(board, START, strict=True) if then != ".") for board in played]
    assert left[2:] == expected
    assert len(set(expected)) > 3


def test_kinds_of_shapes():
    once, twice = (PlacedShape("square", 16, 16),), (PlacedShape("square", 16, 16), PlacedShape("square", 48, 48))
    both = (*once, PlacedShape("triangle", 48, 48))
    pictures = torch.from_numpy(np.stack([draw_shapes(shapes) for shapes in ((), once, twice, both)]))
    assert count_kinds(pictures).tolist() == [0, 1, 1, 2]
