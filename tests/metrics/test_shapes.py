import numpy as np
import pytest
import torch

from privgen.data.shapes import SHAPES, PlacedShape, draw_shapes, sample_shapes
from privgen.metrics.shapes import read_shapes, validate_shapes


def test_reader_makes_no_error_on_real_pictures():
    for i in range(300):
        placed = sample_shapes(5, i)
        assert sorted(map(str, read_shapes(draw_shapes(placed)))) == sorted(shape.kind for shape in placed)


@pytest.mark.slow
def test_reader_makes_no_error_on_ten_thousand_pictures():
    images = np.stack([draw_shapes(sample_shapes(6, i)) for i in range(10_000)])
    assert validate_shapes(torch.from_numpy(images)).fraction == 0


def test_pictures_are_seeded_and_even():
    found = [sample_shapes(5, i) for i in range(400)]
    assert found == [sample_shapes(5, i) for i in range(400)]
    for kind in SHAPES:
        assert 0.4 < np.mean([any(shape.kind == kind for shape in placed) for placed in found]) < 0.6
    picture = draw_shapes(found[0])
    assert (picture.shape, picture.dtype, 0 <= picture.min() <= picture.max() <= 1) == ((1, 64, 64), np.float32, True)


def test_rules(generator):
    square, pentagon = PlacedShape("square", 12, 12), PlacedShape("pentagon", 50, 40)
    images = [
        draw_shapes((square, pentagon)),
        draw_shapes((square, PlacedShape("square", 40, 40))),
        draw_shapes((square, PlacedShape("triangle", 17, 20))),  # grown together
        np.zeros((1, 64, 64), np.float32),
        torch.rand(1, 64, 64, generator=generator).numpy(),
    ]
    validation = validate_shapes(torch.from_numpy(np.stack(images)))
    assert validation.broken["repeated"].tolist()[:4] == [False, True, False, False]
    assert validation.broken["unknown"].tolist() == [False, False, True, False, True]
    assert validation.hallucinated.tolist() == [False, True, True, False, True]


def test_a_dim_or_noisy_picture_is_read(generator):
    placed = sample_shapes(5, 1) or sample_shapes(5, 2)
    noisy = 0.8 * draw_shapes(placed) + 0.05 * torch.randn(1, 64, 64, generator=generator).numpy()
    assert sorted(map(str, read_shapes(noisy))) == sorted(shape.kind for shape in placed)
