"""What methods may spend, and which samples they keep."""

import pytest
import torch
from diffusers import DDPMScheduler

from privgen.data.toys import ExactDenoiser, gaussian_grid
from privgen.diffusion.detector import Detector
from privgen.evaluation.hallucination_methods import MIDWAY, Budget, Method, affordable, sample


SCHEDULER = DDPMScheduler(1000)


def timesteps(steps):
    scheduler = DDPMScheduler(1000)
    scheduler.set_timesteps(steps)
    return scheduler.timesteps


@pytest.mark.parametrize(
    ("reject", "screen", "expected"),
    [
        (0.0, 0.0, Budget(100, 100, 25)),
        (0.2, 0.0, Budget(125, 125, 19)),
        (0.5, 0.0, Budget(200, 200, 11)),
        (0.0, 0.55, Budget(223, 100, 15, 8)),
        (0.2, 0.4, Budget(209, 125, 13, 7)),
    ],
)
def test_affordable(reject, screen, expected):
    detector = Detector((800,))
    found = affordable(25, 100, Method("ddpm", reject=reject, screen=screen), detector, timesteps)
    assert found == expected
    asked = detector.calls if reject else 0
    assert found.calls(asked) <= 2500
    # One step more could not be paid.
    early = int((timesteps(found.steps + 1) >= MIDWAY[0]).sum()) if screen else 0
    assert Budget(found.begun, found.finished, found.steps + 1, early).calls(asked) > 2500


@pytest.mark.parametrize("nfe", range(12, 40))
def test_there_is_a_variance_to_screen_by(nfe):
    found = affordable(nfe, 50, Method("ddpm", screen=0.55), Detector((800,)), timesteps)
    times = timesteps(found.steps)[: found.early]
    assert int((times <= MIDWAY[1]).sum()) >= 2
    assert found.calls(0) <= 50 * nfe


def test_too_few_calls_to_screen_by():
    with pytest.raises(ValueError, match="5 network calls a sample are too few"):
        affordable(5, 50, Method("ddpm", screen=0.55), Detector((800,)), timesteps)
    with pytest.raises(ValueError, match="no screening"):
        affordable(25, 50, Method("ddpm", screen=0.55), Detector((800,)))


def test_screening_keeps_what_is_decided_midway():
    """Of samples that would have been made anyway, those whose predicted x_0 varies least halfway."""
    mixture = gaussian_grid()
    network = ExactDenoiser(mixture, SCHEDULER)
    evaluated, predicted = [], {}

    def denoise(x, t):
        output = network(x, t).sample
        evaluated.append(len(x))
        if MIDWAY[0] <= t <= MIDWAY[1] and len(x) == budget.begun:
            alpha_bar = SCHEDULER.alphas_cumprod[t]
            predicted[int(t)] = (x - (1 - alpha_bar).sqrt() * output) / alpha_bar.sqrt()
        return output

    method, kept, nfe = Method("ddim", screen=0.5), 40, 25
    budget = affordable(nfe, kept, method, Detector((20,)), timesteps)

    def run(method, nfe, shape):
        generator = torch.Generator().manual_seed(3)
        return sample(
            denoise, SCHEDULER, method, Detector((20,)), nfe=nfe, shape=shape, generator=generator, chunk=100
        )

    found = run(method, nfe, (kept, 2))
    assert sum(evaluated) - kept == budget.calls(0) <= nfe * kept  # the detector is asked, but rejects nothing
    varied = torch.stack(list(predicted.values())).var(0).mean(1)
    expected = varied.argsort()[:kept].sort().values
    everything = run(Method("ddim"), budget.steps, (budget.begun, 2))
    torch.testing.assert_close(found.x, everything.x[expected])
