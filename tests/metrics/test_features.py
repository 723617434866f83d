import math

import pytest
import torch

from privgen.metrics.features import coverage, fit_projection, frechet_distance


def exact(mean, covariance, n=400):
    """Rows (n, d) whose mean and sample covariance are these exactly."""
    x = torch.randn(n, len(mean), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = x - x.mean(0)
    white = x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T
    return white @ torch.linalg.cholesky(torch.tensor(covariance, dtype=torch.float64)).T + torch.tensor(mean)


def test_frechet_distance_of_commuting_covariances():
    # |m|^2 + sum of (s_i - r_i)^2 for diagonal covariances.
    first = exact([0.0, 0.0], [[4.0, 0.0], [0.0, 9.0]])
    second = exact([1.0, 2.0], [[1.0, 0.0], [0.0, 1.0]])
    assert frechet_distance(first, second) == pytest.approx(1 + 4 + 1 + 4)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-9)


def test_frechet_distance_of_others_is_symmetric_and_closed_form():
    # tr (A B)^1/2 of two-by-two matrices is (tr AB + 2 (det AB)^1/2)^1/2.
    a, b = [[2.0, 1.0], [1.0, 3.0]], [[1.0, -0.5], [-0.5, 2.0]]
    product = torch.tensor(a) @ torch.tensor(b)
    cross = math.sqrt(float(product.trace()) + 2 * math.sqrt(float(torch.linalg.det(product))))
    first, second = exact([0.0, 1.0], a), exact([0.0, 0.0], b)
    expected = 1 + 5 + 3 - 2 * cross
    assert frechet_distance(first, second) == pytest.approx(expected)
    assert frechet_distance(second, first) == pytest.approx(expected)


def test_frechet_distance_of_what_is_not_a_number():
    assert math.isnan(frechet_distance(torch.full((4, 2), math.nan), torch.rand(4, 2)))


def test_coverage_by_hand():
    real = torch.tensor([[0.0], [1.0], [2.0], [10.0]])
    # With k = 1 the balls have radii 1, 1, 1 and 8.
    assert coverage(real, torch.tensor([[0.5]]), neighbours=1) == 0.5
    assert coverage(real, torch.tensor([[1.5]]), neighbours=1) == 0.5
    assert coverage(real, torch.tensor([[1.0], [18.0]]), neighbours=1) == 1.0
    assert coverage(real, torch.tensor([[math.nan]]), neighbours=1) == 0.0
    assert coverage(real, real, neighbours=1) == 1.0


def test_projection_has_unit_variance_along_the_main_axes():
    x = exact([3.0, 1.0, 0.0], [[9.0, 0.0, 0.0], [0.0, 4.0, 0.0], [0.0, 0.0, 0.01]])
    seen = fit_projection(x, 2)(x)
    assert seen.shape == (400, 2)
    assert seen.mean(0).abs().max() < 1e-9
    assert torch.cov(seen.T).diagonal().sort().values.tolist() == pytest.approx([4 / 6.5, 9 / 6.5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(torch.rand(1, 2), torch.rand(5, 2)), "at least 2 rows"),
        (lambda: frechet_distance(torch.rand(5, 3), torch.rand(5, 2)), "got \\(5, 3\\) and \\(5, 2\\)"),
        (lambda: coverage(torch.rand(5, 2), torch.rand(5, 2)), "more than 5 real samples, got 5"),
        (lambda: coverage(torch.rand(9, 2), torch.rand(9, 3)), "got \\(9, 2\\) and \\(9, 3\\)"),
        (lambda: fit_projection(torch.ones(9, 2), 2), "features that vary"),
        (lambda: fit_projection(torch.ones(9), 2), "got \\(9,\\), 2"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
