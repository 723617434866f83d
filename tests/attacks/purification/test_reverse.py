"""The ways back of DiffPure against what is known in closed form, and against other integrations."""

import math
from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler, PNDMScheduler
from scipy.integrate import solve_ivp
from torch import nn

from privgen.attacks import Denoiser, DiffPure, load_denoiser
from privgen.attacks.purification.denoiser import denoiser_of
from privgen.attacks.purification.diffpure import MODES
from privgen.attacks.purification.reverse import add_noise, reverse_ddpm, reverse_ode, reverse_sde
from privgen.data.scenes import PREVIEW_SEED, draw_scene


MEAN, STD = 0.1, 0.2


class Gaussian(nn.Module):
    """The exact denoiser of data that is normal with `MEAN` and `STD`, in each number independently."""

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler, self.config = scheduler, SimpleNamespace()
        self.anchor = nn.Parameter(torch.zeros((), dtype=torch.float64))  # its precision is the network's
        self.logs = scheduler.alphas_cumprod.double().log()

    def forward(self, x, t):
        low = t.floor().long()
        high = (low + 1).clamp(max=len(self.logs) - 1)
        alpha_bar = torch.lerp(self.logs[low], self.logs[high], (t - low).double()).exp()
        alpha, sigma = alpha_bar.sqrt(), (1 - alpha_bar).sqrt()
        x_0 = MEAN + STD**2 * alpha / (STD**2 * alpha_bar + sigma**2) * (x - alpha * MEAN)
        eps = (x - alpha * x_0) / sigma
        kind = self.scheduler.config.prediction_type
        return SimpleNamespace(sample={"epsilon": eps, "sample": x_0, "v_prediction": alpha * eps - sigma * x_0}[kind])


def gaussian(prediction="epsilon", cls=DDPMScheduler):
    scheduler = cls(beta_start=1e-4, beta_end=0.02, beta_schedule="linear", prediction_type=prediction)
    if "clip_sample" in scheduler.config:
        scheduler.register_to_config(clip_sample=False)
    return Denoiser(network=Gaussian(scheduler), scheduler=scheduler)


def reverse(mode, denoiser, x_t, t_star, generators, steps=None):
    if mode == "ode":
        return reverse_ode(denoiser, x_t, t_star, steps)
    return (reverse_ddpm if mode == "ddpm" else reverse_sde)(denoiser, x_t, t_star, generators, steps)


def expected(mode, start, t_star, denoiser):
    """Mean and standard deviation of what is made of one value, exactly."""
    alpha_bar = denoiser.alpha_bar(t_star - 1)
    noisy = STD**2 * alpha_bar + 1 - alpha_bar  # variance of x_t over the data
    if mode == "ode":  # it scales deviations from the mean by the ratio of the standard deviations
        gain = STD / noisy**0.5
        return MEAN + gain * alpha_bar**0.5 * (start - MEAN), gain * (1 - alpha_bar) ** 0.5
    gain = STD**2 * alpha_bar**0.5 / noisy
    spread = gain**2 * (1 - alpha_bar) + STD**2 * (1 - alpha_bar) / noisy
    return MEAN + gain * alpha_bar**0.5 * (start - MEAN), spread**0.5


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_statistics_in_closed_form(mode, prediction, seeded):
    """One value, purified often, has the distribution that exact purification gives it."""
    denoiser, generators = gaussian(prediction), seeded(1, 2)
    x_0 = torch.full((2, 3, 36, 36), 0.5, dtype=torch.float64)
    x_t = add_noise(denoiser, x_0, 100, generators)
    found = reverse(mode, denoiser, x_t, 100, generators)
    mean, std = expected(mode, 0.5, 100, denoiser)
    assert float(found.mean()) == pytest.approx(mean, abs=0.007)
    assert float(found.std()) == pytest.approx(std, rel=0.04)


@pytest.mark.parametrize(
    ("mode", "t_star"), [("ddpm", 1), ("ddpm", 1000), ("ode", 1), ("ode", 1000), ("sde", 1), ("sde", 30)]
)
def test_the_data_stay_as_they_are(mode, t_star, seeded):
    """The distribution that the model knows goes through unchanged, from any noise."""
    denoiser, generators = gaussian(), seeded(1, 2)
    x_0 = MEAN + STD * torch.randn(2, 3, 32, 32, generator=seeded(0), dtype=torch.float64)
    steps = 100 if mode == "ode" and t_star == 1000 else None
    found = reverse(mode, denoiser, add_noise(denoiser, x_0, t_star, generators), t_star, generators, steps)
    assert float(found.mean()) == pytest.approx(MEAN, abs=0.012)
    assert float(found.std()) == pytest.approx(STD, rel=0.04)


@pytest.mark.parametrize("mode", ["ddpm", "sde"])
def test_fewer_steps(mode, seeded):
    denoiser, generators = gaussian(), seeded(1, 2)
    x_t = add_noise(denoiser, torch.full((2, 3, 36, 36), 0.5, dtype=torch.float64), 100, generators)
    found = reverse(mode, denoiser, x_t, 100, generators, 34)
    mean, std = expected(mode, 0.5, 100, denoiser)
    assert float(found.mean()) == pytest.approx(mean, abs=0.02)
    assert float(found.std()) == pytest.approx(std, rel=0.1)


def test_a_third_prediction(seeded):
    """Models that predict the picture itself are those that predict noise."""
    x_t = torch.randn(1, 3, 4, 4, generator=seeded(0), dtype=torch.float64)
    torch.testing.assert_close(gaussian("sample").noise(x_t, 99.5), gaussian().noise(x_t, 99.5))


def integrate(denoiser, x_t, t_star):
    """The probability-flow ODE by SciPy's RK45 in the spread s, from t_star down to the lowest noise level."""
    logs = denoiser.alphas_cumprod[:t_star].log()
    spreads = (torch.exp(-logs) - 1).sqrt()

    def slope(s, y):
        log = -math.log1p(s**2)
        # Between timesteps, log abar is linear; logs fall with t.
        low = min(max(int((logs >= log).sum()) - 1, 0), t_star - 2)
        t = low + min(max(float((log - logs[low]) / (logs[low + 1] - logs[low])), 0.0), 1.0)
        return denoiser.noise(torch.tensor(y).reshape(x_t.shape) * math.exp(log / 2), t).flatten().numpy()

    start = (x_t / denoiser.alpha_bar(t_star - 1) ** 0.5).flatten().numpy()
    run = solve_ivp(slope, (float(spreads[-1]), float(spreads[0])), start, rtol=1e-5, atol=1e-7)
    end = torch.tensor(run.y[:, -1]).reshape(x_t.shape)
    return end - float(spreads[0]) * denoiser.noise(end * denoiser.alpha_bar(0) ** 0.5, 0)


@torch.no_grad()
def test_ode_is_the_reference_integration(tiny_ddpm, seeded):
    network = tiny_ddpm()
    network.unet.double()
    for denoiser in (gaussian(), denoiser_of(network)):
        x_t = add_noise(denoiser, 0.4 * torch.rand(1, 3, 8, 8, generator=seeded(0), dtype=torch.float64), 100, [None])
        reference = integrate(denoiser, x_t, 100)
        assert float((reference - x_t).abs().mean()) > 0.02
        torch.testing.assert_close(reverse_ode(denoiser, x_t, 100), reference, atol=3e-3, rtol=0)
        torch.testing.assert_close(reverse_ode(denoiser, x_t, 100, 99), reference, atol=2e-4, rtol=0)


@pytest.mark.parametrize("t_star", [100, 150])
def test_ode_in_closed_form(t_star, seeded):
    denoiser = gaussian("v_prediction")
    x_0 = MEAN + STD * torch.randn(1, 3, 16, 16, generator=seeded(0), dtype=torch.float64)
    x_t, alpha_bar = add_noise(denoiser, x_0, t_star, [seeded(1)]), denoiser.alpha_bar(t_star - 1)
    exact = MEAN + (x_t - alpha_bar**0.5 * MEAN) * STD / (STD**2 * alpha_bar + 1 - alpha_bar) ** 0.5
    torch.testing.assert_close(reverse_ode(denoiser, x_t, t_star), exact, atol=1e-3, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("options", [{}, {"out_channels": 6}], ids=["plain", "learned variance"])
def test_ddpm_is_the_loop_of_diffusers(options, tiny_ddpm, seeded):
    kind = "learned_range" if options else "fixed_small"
    pipeline = tiny_ddpm(scheduler=DDPMScheduler(variance_type=kind), **options)
    x = torch.rand(1, 3, 16, 16, generator=seeded(0)) - 0.5
    found = reverse_ddpm(denoiser_of(pipeline), x, 20, [seeded(1)])
    scheduler, source = DDPMScheduler(variance_type=kind), seeded(1)
    for t in reversed(range(20)):
        x = scheduler.step(pipeline.unet(x, t).sample, t, x, generator=[source]).prev_sample
    torch.testing.assert_close(found, x, atol=2e-4, rtol=0)


@pytest.mark.parametrize("cls", [DDIMScheduler, PNDMScheduler, EulerDiscreteScheduler])
def test_the_class_of_the_scheduler_does_not_matter(cls, seeded):
    x = torch.rand(1, 3, 8, 8, generator=seeded(0)) - 0.5
    run = lambda denoiser: reverse_ddpm(denoiser, x, 50, [seeded(1)])  # noqa: E731
    torch.testing.assert_close(run(gaussian(cls=cls)), run(gaussian()))


@torch.no_grad()
def test_quality_falls_over_the_sweep(realistic, psnr, seeded):
    """With the exact model of normal data, that of grey noise, for which pictures are far from it."""
    denoiser = gaussian()
    quality = [
        psnr(DiffPure(strength=s, steps=15, model=denoiser)(realistic, generator=seeded(0)), realistic)
        for s in DiffPure.sweep
    ]
    assert quality == sorted(quality, reverse=True)
    assert quality[0] > quality[-1] + 0.5


@pytest.mark.slow
@torch.no_grad()
def test_ode_of_mini_is_the_reference_integration():
    denoiser = load_denoiser(device="cpu")
    image = torch.from_numpy(draw_scene(PREVIEW_SEED + 1000).pixels)[None, :, :64, :64]
    x_t = add_noise(denoiser, 2 * image.double() - 1, 100, [torch.Generator().manual_seed(0)])
    error = reverse_ode(denoiser, x_t, 100) - integrate(denoiser, x_t, 100)
    assert float(error.square().mean().sqrt()) < 0.01
