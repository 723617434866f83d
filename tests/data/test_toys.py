import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from privgen.data.toys import ExactDenoiser, GaussianMixture, gaussian_grid, gaussian_line


MIXTURES = [gaussian_grid(std=0.1), gaussian_line(std=0.2), GaussianMixture(((0.3, -0.2, 0.1),), 0.4)]


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
def test_score_is_the_gradient_of_the_density(mixture, alpha_bar, generator):
    x = torch.randn(50, mixture.dimensions, generator=generator, dtype=torch.float64, requires_grad=True)
    level = torch.full((50,), alpha_bar, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(mixture.log_density(x, level).sum(), x)
    assert torch.allclose(mixture.score(x, level), gradient, rtol=1e-6, atol=1e-6)


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
    assert torch.allclose(mean[0], expected, atol=0.01)
    assert torch.allclose(variance[0], (weights * (data - expected).square()).sum(0), atol=0.01)


def test_density_integrates_to_one():
    line = torch.linspace(-3, 3, 20_001, dtype=torch.float64)[:, None]
    density = gaussian_line(std=0.1).log_density(line, torch.tensor(0.9)).exp()
    assert float(torch.trapezoid(density, line.flatten())) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_denoiser_samples_the_data_through_diffusers(prediction, generator):
    scheduler = DDIMScheduler(clip_sample=False, set_alpha_to_one=True, prediction_type=prediction)
    grid = gaussian_grid()
    exact = ExactDenoiser(grid, scheduler)
    scheduler.set_timesteps(50)
    x = torch.randn(500, 2, generator=generator)
    for t in scheduler.timesteps:
        x = scheduler.step(exact(x, t).sample, t, x).prev_sample
    nearest = torch.cdist(x.double(), grid.centres).min(1)
    assert float((nearest.values < 4 * grid.std).double().mean()) > 0.95
    assert len(set(nearest.indices.tolist())) == 25


def test_denoiser_speaks_like_a_unet():
    scheduler = DDPMScheduler()
    exact = ExactDenoiser(gaussian_grid(), scheduler, learn_variance=True)
    x = torch.zeros(3, 2)
    assert exact(x, 5).sample.shape == (3, 4)
    assert torch.equal(exact(x, torch.tensor([5, 5, 5]), return_dict=False)[0], exact(x, 5.0).sample)
    # Between two timesteps, as Euler's schedulers ask.
    low, middle, high = (float(exact(torch.ones(1, 2), t).sample[0, 0]) for t in (5, 5.5, 6))
    assert min(low, high) < middle < max(low, high)
