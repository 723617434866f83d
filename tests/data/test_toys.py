import math

import pytest
import torch

from privgen.data.toys import GaussianMixture, gaussian_grid, gaussian_line


MIXTURES = [gaussian_grid(std=0.1), gaussian_line(std=0.2), GaussianMixture(((0.3, -0.2, 0.1),), 0.4)]


def log_density(mixture, x_t, alpha_bar):
    """Log p_t(x_t), (B,), written out from the definition of the mixture."""
    variance = alpha_bar * mixture.std**2 + 1 - alpha_bar
    distances = (x_t[:, None] - math.sqrt(alpha_bar) * mixture.centres).square().sum(-1)
    scale = mixture.dimensions / 2 * math.log(2 * math.pi * variance) + math.log(len(mixture.means))
    return torch.logsumexp(-distances / (2 * variance), dim=1) - scale


def test_the_grid():
    grid = gaussian_grid()
    assert len(set(grid.means)) == 25
    assert {x for x, _ in grid.means} == {-1.0, -0.5, 0.0, 0.5, 1.0}
    assert gaussian_line().means == ((-0.5,), (0.0,), (0.5,))


def test_samples_are_seeded_and_of_the_mixture():
    grid = gaussian_grid()
    a, b = (grid.sample(20_000, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    assert torch.equal(a, grid.sample(20_000, torch.Generator().manual_seed(1)))
    assert not torch.equal(a, b)
    nearest = torch.cdist(a.double(), grid.centres).min(1)
    assert float(nearest.values.square().mean()) == pytest.approx(2 * grid.std**2, rel=0.03)
    assert (torch.bincount(nearest.indices) / 800 - 1).abs().max() < 0.2


@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("alpha_bar", [0.999, 0.6, 0.01])
def test_posterior_mean_gives_the_gradient_of_the_density(mixture, alpha_bar, generator):
    """Tweedie's formula: the score of p_t is (sqrt(alpha_bar) E[x_0 | x_t] - x_t) / (1 - alpha_bar)."""
    x = torch.randn(50, mixture.dimensions, generator=generator, dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(log_density(mixture, x, alpha_bar).sum(), x)
    mean, _ = mixture.posterior(x, torch.full((50,), alpha_bar, dtype=torch.float64))
    torch.testing.assert_close((math.sqrt(alpha_bar) * mean - x) / (1 - alpha_bar), score, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mixture", MIXTURES[:2])
def test_posterior_is_that_of_many_samples(mixture, generator):
    """By importance sampling: real data, weighted by how likely they lead to x_t."""
    alpha_bar = torch.tensor(0.7, dtype=torch.float64)
    data = mixture.sample(200_000, generator).double()
    x_t = torch.full((1, mixture.dimensions), 0.21, dtype=torch.float64)
    distance = (x_t - alpha_bar.sqrt() * data).square().sum(1)
    weights = torch.softmax(-distance / (2 * (1 - alpha_bar)), 0)[:, None]
    mean, variance = mixture.posterior(x_t, alpha_bar)
    expected = (weights * data).sum(0)
    torch.testing.assert_close(mean[0], expected, atol=0.01, rtol=0)
    torch.testing.assert_close(variance[0], (weights * (data - expected).square()).sum(0), atol=0.01, rtol=0)
