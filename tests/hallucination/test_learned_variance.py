import math

import pytest
import torch
from diffusers import DDPMScheduler

from privgen.data.toys import GaussianMixture
from privgen.evaluation.hallucination.exact_denoiser import ExactDenoiser
from privgen.hallucination.learned_variance import (
    HybridLoss,
    ReverseStep,
    hybrid_loss,
    posterior_variance_of_original,
    precision_penalty,
    vlb_term,
    vsm_penalty,
)


STD = 0.3
SCHEDULES = ["linear", "scaled_linear", "squaredcos_cap_v2"]


def scheduler(timesteps=40, **options):
    settings = {"beta_start": 0.002, "beta_end": 0.3, "clip_sample": False, "variance_type": "learned_range"}
    return DDPMScheduler(timesteps, **settings | options)


def constants(t, schedule="linear", timesteps=1000):
    alphas = DDPMScheduler(timesteps, beta_schedule=schedule).alphas_cumprod
    return ReverseStep.at(torch.as_tensor(t), alphas, torch.zeros(len(t), 1, dtype=torch.float64))


def best_variance(alphas, t):
    """Variance of p(x_{t-1} | x_t) for data of N(0, STD^2): both are Gaussian, so it is c - b^2 / a."""
    a, before = float(alphas[t]), float(alphas[t - 1])
    now_variance, before_variance = a * STD**2 + 1 - a, before * STD**2 + 1 - before
    covariance = math.sqrt(a / before) * before_variance
    return before_variance - covariance**2 / now_variance


def test_variances_are_those_that_diffusers_samples_with():
    theirs = scheduler()
    theirs.set_timesteps(40)
    for t in range(1, 40):
        step = ReverseStep.at(torch.tensor([t]), theirs.alphas_cumprod, torch.zeros(1, 1))
        for v in (-1.0, -0.2, 0.7, 1.0):
            expected = theirs._get_variance(t, predicted_variance=torch.tensor([[v]]))
            torch.testing.assert_close(step.log_variance(torch.tensor([[v]])), expected, atol=1e-4, rtol=0)


def test_bound_of_a_chain_computed_by_hand():
    """Three timesteps with beta = 0.1, 0.2, 0.5 and one number; only arithmetic below."""
    alphas = torch.tensor([0.9, 0.72, 0.36], dtype=torch.float64)
    x_0, eps, wrong = 0.5, -0.4, 0.1
    expected = []
    for t, (now, before, beta, tilde) in enumerate(
        [
            (0.9, 1.0, 0.1, 0.2 * 0.1 / 0.28),
            (0.72, 0.9, 0.2, 0.2 * 0.1 / 0.28),
            (0.36, 0.72, 0.5, 0.5 * 0.28 / 0.64),
        ]
    ):
        variance = math.exp(0.25 * math.log(beta) + 0.75 * math.log(tilde))
        x_t = math.sqrt(now) * x_0 + math.sqrt(1 - now) * eps
        guess = (x_t - math.sqrt(1 - now) * (eps + wrong)) / math.sqrt(now)
        if t == 0:
            expected.append(0.5 * math.log(2 * math.pi * variance) + (x_0 - guess) ** 2 / (2 * variance))
            continue
        apart = math.sqrt(before) * beta / (1 - now) * (x_0 - guess)
        expected.append(0.5 * (math.log(variance / tilde) + (tilde + apart**2) / variance - 1))
    output = torch.tensor([[eps + wrong, -0.5]] * 3, dtype=torch.float64)
    data, noise = torch.full((3, 1), x_0, dtype=torch.float64), torch.full((3, 1), eps, dtype=torch.float64)
    found = hybrid_loss(output, data, noise, torch.arange(3), alphas)
    assert found["vlb"].tolist() == pytest.approx([3 * value for value in expected], rel=1e-9)
    assert found["mse"].tolist() == pytest.approx([wrong**2] * 3)
    assert found["loss"].tolist() == pytest.approx([wrong**2 + 0.003 * value for value in expected], rel=1e-9)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_learning_finds_the_best_variance_of_gaussian_data(prediction, generator):
    """The network is exact in its mean and has one free v a timestep."""
    alphas = scheduler(prediction_type=prediction).alphas_cumprod
    exact = ExactDenoiser(GaussianMixture(((0.0, 0.0),), STD), scheduler(prediction_type=prediction))
    v = torch.zeros(40, 1, requires_grad=True)
    optimizer = torch.optim.Adam([v], lr=0.05)
    for _ in range(120):
        t = torch.tensor([2, 5, 10, 20]).repeat(200)
        x_0, noise = (torch.randn(len(t), 2, generator=generator) * scale for scale in (STD, 1))
        a = alphas[t][:, None]
        with torch.no_grad():
            mean = exact(a.sqrt() * x_0 + (1 - a).sqrt() * noise, t).sample
        output = torch.cat([mean, v[t].expand(-1, 2)], dim=1)
        hybrid_loss(output, x_0, noise, t, alphas, prediction=prediction)["loss"].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    step = ReverseStep.at(torch.arange(40), alphas, v)
    learned = step.log_variance(v).exp().detach().flatten()
    for t in (2, 5, 10, 20):
        assert float(learned[t]) == pytest.approx(best_variance(alphas, t), rel=0.05)
        beta, tilde = float(step.log_beta[t].exp()), float(step.log_beta_tilde[t].exp())
        assert tilde < float(learned[t]) < beta


def test_gradient_of_the_bound_stays_with_the_variance(generator):
    output = torch.randn(4, 6, 2, 2, generator=generator, requires_grad=True)
    x_0, noise = (torch.randn(4, 3, 2, 2, generator=generator) for _ in range(2))
    found = hybrid_loss(output, x_0, noise, torch.tensor([0, 1, 5, 9]), scheduler().alphas_cumprod)
    (gradient,) = torch.autograd.grad(found["vlb"].sum(), output)
    assert not gradient[:, :3].any()
    assert gradient[:, 3:].abs().amin(dim=(1, 2, 3)).min() > 0


@pytest.mark.parametrize("t", [1, 7, 30])
def test_exact_v_is_the_best_variance(t):
    learned = scheduler()
    exact = ExactDenoiser(GaussianMixture(((0.0,),), STD), learned, learn_variance=True)
    v = exact(torch.tensor([[0.4]], dtype=torch.float64), t).sample[:, 1:]
    step = ReverseStep.at(torch.tensor([t]), learned.alphas_cumprod, v)
    assert float(step.log_variance(v).exp()) == pytest.approx(best_variance(learned.alphas_cumprod, t), rel=1e-3)
    a, before = float(learned.alphas_cumprod[t]), float(learned.alphas_cumprod[t - 1])
    posterior = STD**2 * (1 - a) / (a * STD**2 + 1 - a)
    assert float(posterior_variance_of_original(v, a, before)) == pytest.approx(posterior, rel=1e-3)


def test_sampling_with_the_learned_variance_gives_the_data_s_variance(generator):
    """Through Diffusers' own scheduler; with either fixed variance 40 steps miss it."""
    spreads = {}
    for kind in ("learned_range", "fixed_small", "fixed_large"):
        chain = scheduler(variance_type=kind)
        exact = ExactDenoiser(GaussianMixture(((0.0, 0.0),), STD), chain, learn_variance=kind == "learned_range")
        chain.set_timesteps(40)
        x = torch.randn(8_000, 2, generator=generator)
        for t in chain.timesteps:
            x = chain.step(exact(x, t).sample, t, x, generator=generator).prev_sample
        spreads[kind] = float(x.std())
    # The last step takes the mean, which is narrower by the variance of x_0 given x_1.
    first = float(chain.alphas_cumprod[0])
    left = STD**2 * (1 - first) / (first * STD**2 + 1 - first)
    expected = math.sqrt(STD**2 - left)
    assert spreads["learned_range"] == pytest.approx(expected, rel=0.02)
    assert spreads["fixed_small"] < 0.98 * expected
    assert spreads["fixed_large"] > 1.02 * expected


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_published_penalty_is_inert_and_ours_is_not(schedule):
    step = constants(torch.arange(1, 999), schedule)
    low, high = (torch.full((998, 1), v, dtype=torch.float64) for v in (-1.0, 1.0))
    published = vsm_penalty(high, step) - vsm_penalty(low, step)
    ours = precision_penalty(high, step) - precision_penalty(low, step)
    # The cosine schedule's very last steps have a beta near 1, where there is nothing left of the data.
    early = slice(0, 900)
    assert float(published[early].abs().max()) < 1e-6
    assert float(ours.max()) > 0.3
    assert (ours >= 0).all()
    assert float(precision_penalty(low, step).abs().max()) < 1e-9
    # Below the range there is nothing to gain, so that nothing drives v there.
    assert torch.equal(precision_penalty(3 * low, step), precision_penalty(low, step))


def test_penalties_are_in_the_loss_by_their_weights(generator):
    output = torch.randn(3, 2, generator=generator).tanh().requires_grad_()
    x_0, noise = (torch.randn(3, 1, generator=generator) for _ in range(2))
    call = (output, x_0, noise, torch.tensor([1, 2, 3]), scheduler().alphas_cumprod)
    plain = hybrid_loss(*call)
    for name in ("vsm", "precision"):
        found = hybrid_loss(*call, settings=HybridLoss(**{name: 2.0}))
        torch.testing.assert_close(found["loss"], plain["loss"] + 2 * plain[name])
    (gradient,) = torch.autograd.grad(plain["precision"].sum(), output)
    assert (gradient[:, 1] > 0).all()


def test_discretized_decoder_is_a_probability(generator):
    """Summed over the 256 values of a pixel, it is 1; far inside it is the density times the bin's width."""
    values = torch.linspace(-1, 1, 256, dtype=torch.float64)[:, None]
    step = ReverseStep.at(torch.zeros(256, dtype=torch.long), torch.tensor([0.99, 0.9]).double(), values)
    mean, log_variance = torch.full_like(values, 0.3), torch.full_like(values, math.log(0.01))
    call = (mean, log_variance, values, values, torch.zeros(256), step)
    found = (-vlb_term(*call, decoder="discretized")).exp()
    assert float(found.sum()) == pytest.approx(1)
    density = (-vlb_term(*call)).exp()
    assert float(found[165]) == pytest.approx(float(density[165]) * 2 / 255, rel=1e-3)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"output": torch.zeros(2, 3)}, r"expected twice the channels of \(2, 1\), got \(2, 3\)"),
        ({"prediction": "flow_prediction"}, "expected epsilon, v_prediction or sample"),
    ],
)
def test_refuses(change, said):
    call = {"output": torch.zeros(2, 2), "x_0": torch.zeros(2, 1), "noise": torch.zeros(2, 1)}
    with pytest.raises(ValueError, match=said):
        hybrid_loss(**{**call, "t": torch.tensor([1, 2]), "alphas_cumprod": scheduler().alphas_cumprod, **change})


@pytest.mark.parametrize("values", [{"vsm": -1.0}, {"decoder": "none"}])
def test_refuses_settings(values):
    with pytest.raises(ValueError, match="expected"):
        HybridLoss(**values)
