import copy
import inspect
import json
import math

import diffusers
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, StableDiffusionPipeline

from privgen.diffusion.noise_level import noise_level
from privgen.diffusion.parameterisation import predict_noise, predict_original
from privgen.errors import UsageError
from privgen.hallucination.amplification import Amplification, amplify_tangent
from privgen.hallucination.scheduler import AmplifiedScheduler, amplified


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
SLOW_UPSTREAM = [("KDPM2DiscreteScheduler", {})]
FLOW = [("FlowMatchEulerDiscreteScheduler", {})]
PREDICTIONS = ["epsilon", "v_prediction"]
STD = 0.5
STRONG = {"gamma": 1.5, "eta": 1.2, "gate": "running_variance"}


def build(name, options, prediction="epsilon"):
    kind = {} if name.startswith("Flow") else {"prediction_type": prediction, "beta_schedule": "scaled_linear"}
    return getattr(diffusers, name)(**kind, **options)


def gaussian_output(scheduler, x, t, prediction):
    """The exact output of a network for data of N(0, STD^2): everything is linear in x."""
    level = noise_level(scheduler, t)
    x = x * level.scale
    variance = level.alpha**2 * STD**2 + level.sigma**2
    noise, original = level.sigma / variance * x, level.alpha * STD**2 / variance * x
    if prediction == "epsilon":
        return noise
    return noise - original if prediction == "flow_prediction" else level.alpha * noise - level.sigma * original


def run(scheduler, prediction="epsilon", steps=12, seed=0, shape=(3, 2, 4, 4), learned=None):
    generator = torch.Generator().manual_seed(seed)
    scheduler.set_timesteps(steps)
    x = torch.randn(shape, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": generator} if takes_generator else {}
    for t in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        output = gaussian_output(scheduler, x, t, prediction)
        if learned is not None:
            output = torch.cat([output, torch.full_like(output, learned)], dim=1)
        x = scheduler.step(output, t, x, **extra, return_dict=False)[0]
    return x


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


@pytest.mark.parametrize(("name", "options"), FLOW)
def test_flow_without_amplification(name, options):
    plain = run(build(name, options), "flow_prediction")
    assert torch.equal(run(AmplifiedScheduler(build(name, options)), "flow_prediction"), plain)
    assert idle_differs(plain, run(AmplifiedScheduler(build(name, options), Amplification(1.3)), "flow_prediction"))


def idle_differs(a, b):
    return not torch.equal(a, b) and bool(b.isfinite().all())


@pytest.mark.parametrize(("name", "options"), VP + VE + SLOW_UPSTREAM + FLOW)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_noise_level_is_the_scheduler_s_own(name, options, prediction):
    """What we read as x_0 is what the scheduler reads, wherever it says so."""
    if name.startswith("Flow"):
        prediction = "flow_prediction"
    scheduler = build(name, options, prediction)
    scheduler.set_timesteps(7)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 1, 3, 3, generator=generator) * getattr(scheduler, "init_noise_sigma", 1.0)
    for t in scheduler.timesteps[:5]:
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)
        level = noise_level(scheduler, t)
        output = torch.randn(x.shape, generator=generator)
        noise = predict_noise(output, x, level, prediction)
        original = predict_original(output, x, level, prediction)
        assert torch.allclose(level.alpha * original + level.sigma * noise, x * level.scale, atol=2e-4, rtol=1e-4)
        theirs = getattr(copy.deepcopy(scheduler).step(output, t, x), "pred_original_sample", None)
        if theirs is not None and name != "HeunDiscreteScheduler":
            assert torch.allclose(theirs, original, atol=1e-3, rtol=1e-3)
        x = scheduler.step(output, t, x, return_dict=False)[0]


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
            if hasattr(scheduler, "step_index") and scheduler.step_index is None:
                scheduler._init_step_index(t)
        made = ours.step(gaussian_output(ours, x, t, prediction), t, x, **seeded(ours)).prev_sample
        scaled = gamma * gaussian_output(plain, x, t, "epsilon")
        assert torch.allclose(made, plain.step(scaled, t, x, **seeded(plain)).prev_sample, atol=1e-4, rtol=1e-4)


def seeded(scheduler):
    takes = "generator" in inspect.signature(scheduler.step).parameters
    return {"generator": torch.Generator().manual_seed(5)} if takes else {}


@pytest.mark.parametrize("gamma", [0.8, 1.0, 1.25])
def test_amplified_gaussian_has_the_standard_deviation_of_the_closed_form(gamma):
    """DDIM of an exact Gaussian is a product of numbers: the recursion is written out here, apart from any library."""
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


def test_tangential_keeps_the_radial_part(generator):
    x, stepped = (torch.randn(5, 3, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))
    made = amplify_tangent(x, stepped, 1.7)
    before, after = ((x * (y - x)).flatten(1).sum(1) for y in (stepped, made))
    assert torch.allclose(before, after, rtol=1e-12)
    radial = (before / x.square().flatten(1).sum(1)).view(-1, 1, 1, 1) * x
    assert torch.allclose(made - x - radial, 1.7 * (stepped - x - radial), rtol=1e-10)
    assert torch.equal(amplify_tangent(torch.zeros_like(x), stepped, 2.0), 2 * stepped)


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
        made = scheduler.step(output, t, x, return_dict=return_dict)
        steps.append(made.prev_sample if return_dict else made[0])
    assert torch.allclose(steps[1], amplify_tangent(x, steps[0], 1.5))
    assert not torch.allclose(steps[1], steps[0])


def test_trajectory_gate_acts_where_predictions_change(generator):
    scheduler = AmplifiedScheduler(DDIMScheduler(), Amplification(2.0, gate="running_variance", halfway=0.5))
    scheduler.set_timesteps(10)
    x = torch.zeros(1, 1, 1, 2)
    first, second = scheduler.timesteps[:2]
    outputs = [torch.tensor([[[[1.0, 1.0]]]]), torch.tensor([[[[1.0, 2.0]]]])]
    plain = DDIMScheduler()
    plain.set_timesteps(10)
    # The first prediction has nothing to be compared with.
    assert torch.equal(scheduler.step(outputs[0], first, x)[0], plain.step(outputs[0], first, x)[0])
    originals = []
    for t, output in zip((first, second), outputs, strict=True):
        level = noise_level(plain, t)
        originals.append(-level.sigma * output / level.alpha)
    gate = (v := torch.stack(originals).var(0)) / (v + 0.5)
    expected = plain.step(outputs[1] * (1 + gate), second, x)[0]
    assert torch.allclose(scheduler.step(outputs[1], second, x)[0], expected)


def test_learned_gate_acts_where_the_network_is_uncertain():
    scheduler = DDPMScheduler(variance_type="learned_range", clip_sample=False)
    plain = run(scheduler, learned=-1.0)
    gated = Amplification(1.5, gate="learned")
    assert torch.equal(run(AmplifiedScheduler(scheduler, gated), learned=-1.0), plain)
    certain = run(scheduler, learned=1.0)
    assert not torch.equal(run(AmplifiedScheduler(scheduler, gated), learned=1.0), certain)
    with pytest.raises(UsageError, match="needs a network with a learned variance"):
        run(AmplifiedScheduler(DDPMScheduler(), gated))


def test_a_learned_variance_is_left_out_where_nobody_takes_it():
    plain = DDIMScheduler(clip_sample=False)
    assert torch.equal(run(AmplifiedScheduler(plain), learned=0.0), run(plain))


def test_trajectory_variance_is_that_of_the_predictions():
    scheduler = AmplifiedScheduler(DDIMScheduler(clip_sample=False), watch=(0, 500))
    x = run(scheduler, steps=10)
    predictions = []
    plain = DDIMScheduler(clip_sample=False)
    plain.set_timesteps(10)
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    for t in plain.timesteps:
        made = plain.step(gaussian_output(plain, x, t, "epsilon"), t, x)
        x = made.prev_sample
        if t <= 500:
            predictions.append(made.pred_original_sample)
    expected = torch.stack(predictions).var(0).flatten(1).mean(1)
    assert len(predictions) == 6
    assert torch.allclose(scheduler.running_variance(), expected, rtol=1e-4)
    scheduler.set_timesteps(10)
    with pytest.raises(UsageError, match="0 steps were watched"):
        scheduler.running_variance()


@pytest.mark.parametrize(("name", "options"), [*VP[:2], VP[3], VE[0], *FLOW])
def test_saving_and_loading(name, options, tmp_path):
    scheduler = AmplifiedScheduler(build(name, options), Amplification(window=(10, 400), **STRONG), watch=(0, 300))
    scheduler.save_pretrained(tmp_path)
    for again in (AmplifiedScheduler.from_pretrained(tmp_path), AmplifiedScheduler.from_config(scheduler.config)):
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
    # Nothing of an amplification stays with a plain scheduler.
    assert AmplifiedScheduler.from_config(back.config).amplification == Amplification()
    assert AmplifiedScheduler.from_config(plain.config, scheduler="EulerDiscreteScheduler").config.beta_end == 0.03
    assert not [record for record in caplog.records if "amplif" in record.getMessage()]


@pytest.mark.parametrize("name", [None, "Module", "UNet2DModel", "os"])
def test_only_schedulers_of_diffusers_are_built(name):
    with pytest.raises(UsageError, match="is not a scheduler of Diffusers"):
        AmplifiedScheduler.from_config({"_class_name": name})


def test_refuses_what_it_cannot_read():
    with pytest.raises(UsageError, match="EDMEulerScheduler takes predictions of another kind"):
        AmplifiedScheduler(diffusers.EDMEulerScheduler())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"gate": "open"}, "expected gate to be one of constant, running_variance, learned, got 'open'"),
        ({"gamma": -1}, "expected gamma and eta of at least 0"),
        ({"gamma": math.nan}, "expected gamma and eta of at least 0"),
        ({"window": (500, 100)}, "expected window to be low <= high in 0..1000"),
        ({"memory": 1}, "expected memory of at least 2"),
    ],
)
def test_refuses_values(values, said):
    with pytest.raises(ValueError, match=said):
        Amplification(**values)


def test_looks_like_the_scheduler_within():
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


# In pipelines


def images(pipe, steps=3, **options):
    generator = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return pipe(["cat", "dog"], num_inference_steps=steps, generator=generator, output_type="pt", **options).images


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ("sd15", "DDIMScheduler"),
        ("sd15", "EulerDiscreteScheduler"),
        ("sd21", "DDPMScheduler"),
        ("sd21", "DPMSolverMultistepScheduler"),
    ],
)
def test_pipeline(tiny, shape, name):
    tiny_pipe = tiny.tiny_pipeline(shape)
    tiny_pipe.scheduler = getattr(diffusers, name).from_config(tiny_pipe.scheduler.config)
    plain = images(tiny_pipe)
    with amplified(tiny_pipe, watch=(0, 900)) as idle:
        assert torch.equal(images(tiny_pipe), plain)
        assert idle.running_variance().shape == (2,)
    with amplified(tiny_pipe, Amplification(gamma=1.5, eta=1.1)):
        changed = images(tiny_pipe)
    assert not torch.equal(changed, plain)
    assert torch.equal(images(tiny_pipe), plain)
    assert type(tiny_pipe.scheduler).__name__ == name
    with pytest.raises(RuntimeError), amplified(tiny_pipe):
        raise RuntimeError
    assert type(tiny_pipe.scheduler).__name__ == name


def test_pipeline_with_eta_of_ddim(tiny):
    tiny_pipe = tiny.tiny_pipeline()
    plain = images(tiny_pipe, eta=1.0)
    with amplified(tiny_pipe):
        assert torch.equal(images(tiny_pipe, eta=1.0), plain)
    assert not torch.equal(images(tiny_pipe), plain)


def test_a_saved_pipeline_comes_back_amplified(tiny, tmp_path):
    pipe = tiny.tiny_pipeline()
    pipe.scheduler = AmplifiedScheduler(pipe.scheduler, Amplification(gamma=1.4))
    pipe.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, AmplifiedScheduler)
    assert torch.equal(images(again), images(pipe))


def test_outdated_configurations_are_repaired_within(tiny):
    parts = tiny.tiny_pipeline().components
    inner = DDIMScheduler(clip_sample=True, steps_offset=0)
    with pytest.warns(FutureWarning):
        pipe = StableDiffusionPipeline(
            **parts | {"scheduler": AmplifiedScheduler(inner)}, requires_safety_checker=False
        )
    assert (inner.config.clip_sample, inner.config.steps_offset) == (False, 1)
    assert pipe.scheduler.config.clip_sample is False
