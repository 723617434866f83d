import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment

from privgen.noise_assignment.matching import (
    auction_matching,
    duality_gap,
    linear_matching,
    sinkhorn_potentials,
    spread,
)


def costs(size, kind, generator):
    noise = torch.randn(size, 64, generator=generator)
    if kind == "uniform":
        return torch.rand(size, size, generator=generator)
    if kind == "integers":
        return torch.randint(0, 100, (size, size), generator=generator).float()
    image = torch.rand(size, 64, generator=generator) * 2 - (0 if kind == "bright" else 1)
    return -image @ noise.T


def total(cost, columns):
    return cost.double().gather(1, columns[:, None]).sum().item()


def optimum(cost):
    rows, columns = linear_sum_assignment(cost.double().numpy())
    return cost.double().numpy()[rows, columns].sum()


def is_permutation(columns):
    return torch.equal(columns.sort().values, torch.arange(len(columns)))


@pytest.mark.parametrize("kind", ["images", "bright", "uniform", "integers"])
@pytest.mark.parametrize("size", [1, 2, 17, 300])
def test_linear_is_optimal_with_and_without_warm_start(size, kind, generator):
    cost = costs(size, kind, generator)
    columns = linear_matching(cost)
    assert is_permutation(columns)
    assert total(cost, columns) == pytest.approx(optimum(cost), rel=1e-12, abs=1e-9)


@pytest.mark.parametrize(
    "cost",
    [
        pytest.param(torch.zeros(300, 300), id="zeros"),
        pytest.param(torch.arange(300.0)[:, None] + torch.arange(300.0), id="rank one"),
        pytest.param(1e30 * torch.eye(300), id="huge"),
        pytest.param(1e-30 * torch.eye(300).flip(0), id="tiny"),
        pytest.param(torch.eye(300) - 1e6, id="far from zero"),
        pytest.param((torch.arange(300) // 100 != torch.arange(300)[:, None] // 100) * 1e4, id="blocks"),
    ],
)
@pytest.mark.parametrize("solve", [linear_matching, lambda cost: auction_matching(cost).columns])
def test_degenerate_costs_are_solved(cost, solve):
    columns = solve(cost)
    assert is_permutation(columns)
    assert total(cost, columns) == pytest.approx(optimum(cost), rel=1e-6, abs=1e-6 * cost.abs().max().item())


@pytest.mark.parametrize("kind", ["images", "bright", "uniform", "integers"])
@pytest.mark.parametrize("tolerance", [0.3, 0.01, 0.001])
def test_auction_keeps_the_gap_it_reports(kind, tolerance, generator):
    cost = costs(100, kind, generator)
    matching = auction_matching(cost, tolerance=tolerance)
    excess = total(cost, matching.columns) - optimum(cost)
    assert is_permutation(matching.columns)
    assert -1e-9 <= excess <= matching.gap + 1e-4
    assert matching.gap <= 100 * tolerance * spread(cost) + 1e-4


@pytest.mark.parametrize("size", [2, 3, 50, 200])
def test_auction_of_integers_is_exact(size, generator):
    cost = costs(size, "integers", generator)
    matching = auction_matching(cost, tolerance=0.9 / (size * spread(cost)))
    assert total(cost, matching.columns) == optimum(cost)


def test_auction_gives_the_permutation_of_linear_when_asked_closely(generator):
    cost = costs(128, "images", generator).double()
    assert torch.equal(auction_matching(cost, tolerance=1e-6).columns, linear_matching(cost))


def test_auction_stopped_early_still_matches_and_says_how_badly(generator):
    cost = costs(100, "images", generator)
    stopped, finished = auction_matching(cost, max_rounds=2), auction_matching(cost)
    assert is_permutation(stopped.columns)
    assert stopped.rounds == 2
    assert stopped.gap >= total(cost, stopped.columns) - optimum(cost) > finished.gap


def test_auction_is_deterministic(generator):
    cost = costs(100, "integers", generator)  # with ties
    assert torch.equal(auction_matching(cost).columns, auction_matching(cost).columns)


@pytest.mark.parametrize("tolerance", [0, -1, float("nan")])
def test_auction_refuses_a_tolerance(tolerance):
    with pytest.raises(ValueError, match=r"expected tolerance above 0, got"):
        auction_matching(torch.eye(3), tolerance=tolerance)


def test_gap_bounds_any_matching_at_any_prices(generator):
    cost = costs(40, "images", generator).double()
    for _ in range(20):
        columns = torch.randperm(40, generator=generator)
        prices = torch.randn(40, generator=generator, dtype=torch.float64)
        assert duality_gap(cost, columns, prices) >= total(cost, columns) - optimum(cost) - 1e-9


def test_gap_of_a_two_by_two_by_hand():
    cost = torch.tensor([[0.0, 2.0], [1.0, 5.0]])
    best, worst = torch.tensor([1, 0]), torch.tensor([0, 1])
    # Prices 3 and 0: the rows could pay at least 2 and 4, less the prices 3, so 3 is least.
    prices = torch.tensor([3.0, 0.0])
    assert duality_gap(cost, best, prices) == 0
    assert duality_gap(cost, worst, prices) == 2


def test_spread_is_of_what_a_matching_can_change(generator):
    cost = costs(50, "uniform", generator).double()
    shifted = cost + 100 * torch.randn(50, 1, generator=generator) + 100 * torch.randn(50, generator=generator)
    assert spread(shifted) == pytest.approx(spread(cost))
    assert spread(torch.ones(3, 3)) == 0


def test_potentials_even_out_the_columns(generator):
    cost = costs(60, "bright", generator)
    potentials = sinkhorn_potentials(cost, temperature=spread(cost), iterations=50).numpy()
    logits = -(cost.numpy() - potentials) / spread(cost)
    plan = np.exp(logits - logits.max(1, keepdims=True))
    plan /= plan.sum(1, keepdims=True)
    assert plan.sum(0) == pytest.approx(np.ones(60), abs=0.02)
