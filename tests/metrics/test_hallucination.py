import math

import pytest
import torch

from privgen.data.toys import gaussian_grid, gaussian_line
from privgen.evaluation.intervals import fraction
from privgen.metrics.hallucination import (
    auroc,
    keep_best,
    mode_coverage,
    nearest_training_distance,
    validate_mixture,
)


@pytest.mark.parametrize(("mixture", "error"), [(gaussian_grid(), math.exp(-4.5)), (gaussian_line(), 0.0026998)])
def test_error_on_real_data_is_what_is_stated(mixture, error, generator):
    validation = validate_mixture(mixture.sample(50_000, generator), mixture)
    assert validation.reader_error == pytest.approx(error, rel=1e-4)
    measured = fraction(validation.hallucinated)
    assert measured.low <= error <= measured.high
    assert validation.fractions["between modes"] == validation.fraction == measured.value


def test_between_modes_is_hallucinated():
    samples = torch.tensor([[0.0, 0.0], [0.25, 0.0], [0.14, 0.0], [0.16, 0.0], [9.0, 9.0], [math.nan, 0.0]])
    found = validate_mixture(samples, gaussian_grid()).hallucinated
    assert found.tolist() == [False, True, False, True, True, True]


def test_coverage_of_dropped_modes(generator):
    grid = gaussian_grid()
    samples = grid.sample(25_000, generator)
    whole = mode_coverage(samples, grid)
    assert (whole.covered, whole.fractions.sum().item()) == (25, pytest.approx(1))
    assert whole.imbalance < 0.15
    # A Rayleigh law cut at r = 3: mean of r^2 is 2 - 9 e^-4.5 / (1 - e^-4.5).
    expected = math.sqrt((2 - 9 * math.exp(-4.5) / (1 - math.exp(-4.5))) / 2)
    assert whole.spread == pytest.approx(expected, rel=0.01)
    assert expected == pytest.approx(0.974, abs=0.001)
    half = mode_coverage(samples[samples[:, 0] > -0.25], grid)
    assert half.covered == 15
    assert half.imbalance == pytest.approx(1)
    with pytest.raises(ValueError, match="at least one valid sample"):
        mode_coverage(torch.full((3, 2), 9.0), grid)


def test_nearest_training_sample(generator):
    training, samples = torch.randn(200, 3, 2, generator=generator), torch.randn(50, 3, 2, generator=generator)
    samples[7] = training[11]
    expected = [min(float((s - t).square().mean().sqrt()) for t in training) for s in samples]
    found = nearest_training_distance(samples, training, chunk=16)
    assert found.tolist() == pytest.approx(expected, abs=1e-3)
    assert float(found[7]) < 1e-3


def test_auroc_by_hand():
    assert auroc([1, 2, 3, 4], [False, False, True, True]) == 1
    assert auroc([4, 3, 2, 1], [False, False, True, True]) == 0
    assert auroc([1, 1, 1], [True, False, True]) == 0.5
    # Of four pairs, two are right and one is a tie.
    assert auroc([1, 3, 2, 3], [False, False, True, True]) == (2.0 + 0.5) / 4
    assert math.isnan(auroc([1, 2], [True, True]))
    with pytest.raises(ValueError, match="as many scores as labels"):
        auroc([1, 2], [True])


def test_rejection_drops_the_worst():
    scores = torch.tensor([3.0, 1.0, math.nan, 2.0, 5.0])
    assert keep_best(scores, 0.4).tolist() == [0, 1, 3]
    assert keep_best(scores, 0).tolist() == [0, 1, 2, 3, 4]
    assert keep_best(scores, 0.99).tolist() == [1]
    for dropped in (1, -0.1):
        with pytest.raises(ValueError, match="expected a fraction to drop"):
            keep_best(scores, dropped)
