import copy
import inspect
import json
import math
import pickle

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler

from privgen.diffusion.noise_level import noise_level
from privgen.diffusion.parameterisation import prediction_target
from privgen.errors import UsageError
from privgen.hallucination.amplification import Amplification, amplify_tangent
from privgen.hallucination.scheduler import AmplifiedScheduler


VP = [
    ("DDIMScheduler", {"clip_sample": False}),
    ("DDPMScheduler", {"clip_sample": False}),
    ("PNDMScheduler", {}),
    ("DPMSolverMultistepScheduler", {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": True}),
    ("DPMSolverSinglestepScheduler", {}),
    ("UniPCMultistepScheduler", {}),
    ("DEISMultistepScheduler", {}),
]
VE = [
    ("EulerDiscreteScheduler", {}),
    ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    ("EulerAncestralDiscreteScheduler", {}),
    ("HeunDiscreteScheduler", {}),
]
FLOW = [("FlowMatchEulerDiscreteScheduler", {})]
PREDICTIONS = ["epsilon", "v_prediction"]
STD = 0.5
STRONG = {"gamma": 1.5, "eta": 1.2, "gate": "running_variance"}


def build(name, options, prediction="epsilon"):
    kind = {} if name.startswith("Flow") else {"prediction_type": prediction, "beta_schedule": "scaled_linear"}
    return getattr(diffusers, name)(**kind, **options)


def gaussian_output(scheduler, x, t, prediction):
    """The exact output of a network for data of N(0, STD^2), which is linear in x."""
    level = noise_level(scheduler, t)
    x = x * level.scale / (level.alpha**2 * STD**2 + level.sigma**2)
    return prediction_target(level.alpha * STD**2 * x, level.sigma * x, level, prediction)


def run(scheduler, prediction="epsilon", steps=12, seed=0, shape=(3, 2, 4, 4), learned=None):
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    x = torch.randn(shape, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        output = gaussian_output(scheduler, x, t, prediction)
        if learned is not None:
            output = torch.cat([output, torch.full_like(output, learned)], dim=1)
        x = scheduler.step(output, t, x, **seeded(scheduler, generator), return_dict=False)[0]
    return x


def seeded(scheduler, generator):
    return {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("name", "options"), VP + VE)
def test_without_amplification_every_bit_is_the_same(name, options, prediction):
    plain = run(build(name, options, prediction), prediction)
    idle = AmplifiedScheduler(build(name, options, prediction), Amplification(gate="running_variance"), watch=(0, 500))
    outside = AmplifiedScheduler(build(name, options, prediction), Amplification(3, window=(1, 1.5), eta=2))
    assert torch.equal(run(idle, prediction), plain)
    assert torch.equal(run(outside, prediction), plain)
    inside = AmplifiedScheduler(build(name, options, prediction), Amplification(2))
    assert not torch.equal(run(inside, prediction), plain)


def test_flow_without_amplification_is_the_same():
    plain = run(build(*FLOW[0]), "flow_prediction")
    assert torch.equal(run(AmplifiedScheduler(build(*FLOW[0])), "flow_prediction"), plain)
    amplified = run(AmplifiedScheduler(build(*FLOW[0]), gamma=1.3), "flow_prediction")
    assert amplified.isfinite().all()
    assert not torch.allclose(amplified, plain)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("name", "options"), [*VP[:2], VP[3], VE[0]])
@pytest.mark.parametrize("gamma", [0.5, 1.3])
def test_the_score_is_gamma_times_as_large(name, options, prediction, gamma):
    """An amplified step from the exact score equals a plain step from gamma times the exact score."""
    ours, plain = AmplifiedScheduler(build(name, options, prediction), Amplification(gamma)), build(name, options)
    generator = torch.Generator().manual_seed(0)
    for scheduler in (ours, plain):
        scheduler.set_timesteps(10)
    for t in ours.timesteps[2:6]:
        x = torch.randn(2, 1, 4, 4, generator=generator) * (1 if name[:5] != "Euler" else 3)
        for scheduler in (ours, plain):
            scheduler.scale_model_input(x, t)
        amplified = gaussian_output(ours, x, t, prediction), gamma * gaussian_output(plain, x, t, "epsilon")
        steps = [
            scheduler.step(output, t, x, **seeded(scheduler, torch.Generator().manual_seed(5))).prev_sample
            for scheduler, output in zip((ours, plain), amplified, strict=True)
        ]
        torch.testing.assert_close(*steps, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("gamma", [0.8, 1.0, 1.25])
def test_amplified_gaussian_has_the_standard_deviation_of_the_closed_form(gamma):
    """DDIM of an exact Gaussian multiplies by a number at each step; the recursion is written out by hand."""
    scheduler = AmplifiedScheduler(DDIMScheduler(clip_sample=False), Amplification(gamma, window=(0, 600)))
    x = run(scheduler, steps=20, shape=(1, 1, 2, 2))
    start = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    betas = [0.0001 + (0.02 - 0.0001) * i / 999 for i in range(1000)]
    alpha_bars = [math.prod(1 - b for b in betas[: i + 1]) for i in range(1000)]
    factor = 1.0
    for t in range(950, -1, -50):
        now, later = alpha_bars[t], alpha_bars[t - 50] if t >= 50 else 1.0
        noise = math.sqrt(1 - now) / (now * STD**2 + 1 - now) * (gamma if t <= 600 else 1)
        original = (1 - math.sqrt(1 - now) * noise) / math.sqrt(now)
        factor *= math.sqrt(later) * original + math.sqrt(1 - later) * noise
    assert x.flatten().tolist() == pytest.approx((factor * start).flatten().tolist(), rel=1e-4)
    assert gamma == 1 or abs(factor / STD - 1) > 0.1


@pytest.mark.parametrize(("name", "options"), [VP[0], VE[0], VP[3]])
@pytest.mark.parametrize("return_dict", [True, False])
def test_tangential_step_of_a_scheduler(name, options, return_dict, generator):
    plain, ours = build(name, options), AmplifiedScheduler(build(name, options), Amplification(eta=1.5))
    x, output = (torch.randn(2, 1, 3, 3, generator=generator) for _ in range(2))
    steps = []
    for scheduler in (plain, ours):
        scheduler.set_timesteps(5)
        t = scheduler.timesteps[0]
        scheduler.scale_model_input(x, t)
        result = scheduler.step(output, t, x, return_dict=return_dict)
        steps.append(result.prev_sample if return_dict else result[0])
    torch.testing.assert_close(steps[1], amplify_tangent(x, steps[0], 1.5))
    assert not torch.allclose(steps[1], steps[0])


def test_running_variance_gate_acts_where_predictions_change():
    scheduler = AmplifiedScheduler(DDIMScheduler(), gamma=2.0, gate="running_variance", halfway=0.5)
    scheduler.set_timesteps(10)
    x = torch.zeros(1, 1, 1, 2)
    first, second = scheduler.timesteps[:2]
    outputs = [torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[1.0, 2.0]]]])]
    plain = DDIMScheduler()
    plain.set_timesteps(10)
    # There is nothing to compare the first prediction with.
    assert torch.equal(scheduler.step(outputs[0], first, x)[0], plain.step(outputs[0], first, x)[0])
    originals = []
    for t, output in zip((first, second), outputs, strict=True):
        level = noise_level(plain, t)
        originals.append(-level.sigma * output / level.alpha)
    gate = (v := torch.stack(originals).var(0)) / (v + 0.5)
    expected = plain.step(outputs[1] * (1 + gate), second, x)[0]
    torch.testing.assert_close(scheduler.step(outputs[1], second, x)[0], expected)


def test_learned_gate_acts_where_the_network_is_uncertain():
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    plain = run(scheduler, learned=-1.0)
    gated = Amplification(1.5, gate="learned")
    assert torch.equal(run(AmplifiedScheduler(scheduler, gated), learned=-1.0), plain)
    certain = run(scheduler, learned=1.0)
    assert not torch.equal(run(AmplifiedScheduler(scheduler, gated), learned=1.0), certain)
    with pytest.raises(UsageError, match="needs a network with a learned variance"):
        run(AmplifiedScheduler(DDPMScheduler(), gated))


def test_a_learned_variance_is_dropped_if_the_scheduler_takes_none():
    plain = DDIMScheduler(clip_sample=False)
    assert torch.equal(run(AmplifiedScheduler(plain), learned=0.0), run(plain))


def test_running_variance_is_that_of_the_predictions():
    scheduler = AmplifiedScheduler(DDIMScheduler(clip_sample=False), watch=(0, 500))
    last = run(scheduler, steps=10)
    assert torch.equal(scheduler.last_sample, last)
    predictions = []
    plain = DDIMScheduler(clip_sample=False)
    plain.set_timesteps(10)
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in plain.timesteps:
        step = plain.step(gaussian_output(plain, x, t, "epsilon"), t, x)
        x = step.prev_sample
        if t <= 500:
            predictions.append(step.pred_original_sample)
    expected = torch.stack(predictions).var(0).flatten(1).mean(1)
    assert len(predictions) == 6
    torch.testing.assert_close(scheduler.running_variance(), expected, rtol=1e-4, atol=1e-7)
    scheduler.set_timesteps(10)
    with pytest.raises(UsageError, match="0 steps were watched"):
        scheduler.running_variance()


@pytest.mark.parametrize(("name", "options"), [*VP[:2], VP[3], VE[0], *FLOW])
def test_saving_and_loading(name, options, tmp_path):
    scheduler = AmplifiedScheduler(build(name, options), window=(10, 400), watch=(0, 300), **STRONG)
    scheduler.save_pretrained(tmp_path)
    for again in (
        AmplifiedScheduler.from_pretrained(tmp_path),
        AmplifiedScheduler.from_config(scheduler.config),
        pickle.loads(pickle.dumps(scheduler)),
    ):
        assert again.amplification == scheduler.amplification
        assert again.watch == (0, 300)
        assert type(again.scheduler).__name__ == name
        prediction = "flow_prediction" if name.startswith("Flow") else "epsilon"
        assert torch.equal(run(again, prediction), run(scheduler, prediction))
    assert json.loads((tmp_path / "scheduler_config.json").read_text())["_class_name"] == "AmplifiedScheduler"


def test_to_and_from_plain_schedulers(tmp_path, caplog):
    plain = DDIMScheduler(beta_end=0.03, clip_sample=False)
    plain.save_pretrained(tmp_path)
    ours = AmplifiedScheduler.from_pretrained(tmp_path, gamma=1.2, watch=(0, 200))
    assert (ours.amplification, ours.watch) == (Amplification(gamma=1.2), (0, 200))
    assert ours.config.beta_end == 0.03
    assert ours.config["beta_end"] == 0.03
    back = DDIMScheduler.from_config(ours.config)
    assert torch.equal(run(back), run(plain))
    # A plain scheduler keeps nothing of an amplification.
    assert AmplifiedScheduler.from_config(back.config).amplification == Amplification()
    assert AmplifiedScheduler.from_config(plain.config, scheduler="EulerDiscreteScheduler").config.beta_end == 0.03
    assert not [record for record in caplog.records if "amplif" in record.getMessage()]


@pytest.mark.parametrize("name", [None, "Module", "UNet2DModel", "os"])
def test_only_schedulers_of_diffusers_are_built(name):
    with pytest.raises(UsageError, match="is not a scheduler of Diffusers"):
        AmplifiedScheduler.from_config({"_class_name": name})


def test_settings_are_keywords_or_a_value():
    value = Amplification(gamma=1.3, window=(200, 600))
    assert AmplifiedScheduler(DDIMScheduler(), gamma=1.3, window=(200, 600)).amplification == value
    assert AmplifiedScheduler(DDIMScheduler(), value, gamma=1.5).amplification == Amplification(1.5, (200, 600))
    with pytest.raises(ValueError, match="expected gamma and eta of at least 0"):
        AmplifiedScheduler(DDIMScheduler(), gamma=-1)
    with pytest.raises(TypeError, match="gama"):
        AmplifiedScheduler(DDIMScheduler(), gama=1.3)


def test_looks_like_the_scheduler_inside():
    inner = DDIMScheduler()
    scheduler = AmplifiedScheduler(inner)
    assert inspect.signature(scheduler.step) == inspect.signature(inner.step)
    assert inspect.signature(scheduler.set_timesteps) == inspect.signature(inner.set_timesteps)
    assert (scheduler.order, scheduler.init_noise_sigma, len(scheduler)) == (1, 1.0, 1000)
    scheduler.eta_of_mine = 3
    assert inner.eta_of_mine == 3
    other = copy.deepcopy(scheduler)
    other.set_timesteps(5)
    assert inner.num_inference_steps is None
    assert AmplifiedScheduler(scheduler).scheduler is inner
