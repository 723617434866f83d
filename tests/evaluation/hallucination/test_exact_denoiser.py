import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from privgen.data.toys import gaussian_grid
from privgen.evaluation.hallucination.exact_denoiser import ExactDenoiser


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_samples_the_data_through_diffusers(prediction, generator):
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


def test_is_called_like_a_unet():
    exact = ExactDenoiser(gaussian_grid(), DDPMScheduler(), learn_variance=True)
    x = torch.zeros(3, 2)
    assert exact(x, 5).sample.shape == (3, 4)
    assert torch.equal(exact(x, torch.tensor([5, 5, 5]), return_dict=False)[0], exact(x, 5.0).sample)
    # Euler's schedulers ask for noise levels between two timesteps.
    low, middle, high = (float(exact(torch.ones(1, 2), t).sample[0, 0]) for t in (5, 5.5, 6))
    assert min(low, high) < middle < max(low, high)
