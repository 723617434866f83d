"""DiffPure against what is known in closed form, and its contract on tiny random models."""

import math
import sys
from importlib.resources import files
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
)
from scipy.integrate import solve_ivp
from torch import nn

from privgen.attacks import Denoiser, DiffPure, load_denoiser
from privgen.attacks.denoiser import denoiser_of
from privgen.attacks.diffpure import MODES, purify
from privgen.attacks.reverse import add_noise, reverse_ddpm, reverse_ode, reverse_sde
from privgen.errors import PrivgenError


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


ATTACKS = [
    DiffPure(strength=8),
    DiffPure(strength=100, steps=4),
    DiffPure(strength=100, mode="ode", steps=2),
    DiffPure(strength=100, mode="sde", steps=4),
    DiffPure(strength=4, repeats=2),
]


@pytest.fixture(scope="module")
def with_model(tiny_ddpm, tiny):
    """The attack with a tiny model, of pixels or of latents."""
    pixel, latent = Denoiser(**vars_of(tiny_ddpm(), "pixel")), tiny.tiny_pipeline("sd21")

    def make(attack, space="pixel"):
        parameters = {name: getattr(attack, name) for name in ("strength", "mode", "steps", "repeats")}
        return DiffPure(**parameters, model=pixel if space == "pixel" else latent)

    return make


def vars_of(pipeline, name):
    return {"network": pipeline.unet, "scheduler": pipeline.scheduler, "name": name}


@torch.no_grad()
@pytest.mark.parametrize("space", ["pixel", "latent"])
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_contract(attack, space, with_model, pictures, seeded, keeps_contract):
    attack = with_model(attack, space)
    images = pictures(2, 14, 19)
    batch = keeps_contract(attack, images)
    assert not torch.allclose(batch[:1], attack(images[:1], generator=seeded(8)), atol=0.01)
    shared = seeded(0)
    single = torch.cat([attack(image[None], generator=shared) for image in images])
    torch.testing.assert_close(attack(images, generator=seeded(0)), single, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("space", ["pixel", "latent"])
def test_identity_changes_nothing(space, with_model, pictures):
    images = pictures(2, 33, 20)
    assert torch.equal(with_model(DiffPure(strength=0), space)(images), images)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (1, 7), (5, 2)])
def test_tiny_images(size, with_model, seeded):
    assert with_model(DiffPure(strength=5))(torch.full((1, 3, *size), 0.5), generator=seeded(0)).shape[2:] == size


@torch.no_grad()
@pytest.mark.parametrize("space", ["pixel", "latent"])
def test_half_precision(space, tiny, tiny_ddpm, pictures, seeded, psnr):
    """Images of half precision are float32 rounded; weights in bfloat16 change results by no more than 30 dB."""
    make = (lambda: tiny_ddpm()) if space == "pixel" else lambda: tiny.tiny_pipeline("sd21")
    images = pictures(2, 24, 24).bfloat16()
    attack = DiffPure(strength=100, steps=5, model=make())
    exact = attack(images.float(), generator=seeded(1, 2))
    assert torch.equal(attack(images, generator=seeded(1, 2)), exact.bfloat16())
    half = DiffPure(strength=100, steps=5, model=make().to(torch.bfloat16))(images.float(), generator=seeded(1, 2))
    assert psnr(half, exact) > 30


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


@pytest.mark.parametrize("mode", MODES)
def test_gradients_flow(mode, with_model, pictures, seeded):
    images = pictures(1, 16, 16).requires_grad_()
    with_model(DiffPure(strength=5, mode=mode, steps=2))(images, generator=seeded(1)).square().sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0


@torch.no_grad()
def test_strength_is_of_1000(tiny_ddpm, pictures, seeded):
    short = DDPMScheduler(num_train_timesteps=50, beta_start=0.002, beta_end=0.4)
    denoiser = denoiser_of(tiny_ddpm(scheduler=short))
    images = pictures(1, 16, 16)
    found = DiffPure(strength=100, model=denoiser)(images, generator=seeded(3))
    (source,) = [torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (1,), generator=seeded(3))))]
    torch.testing.assert_close(found, purify(denoiser, images, 5, [source]).clamp(0, 1))


@torch.no_grad()
def test_text_models_get_the_empty_prompt(tiny_pipe):
    denoiser = denoiser_of(tiny_pipe)
    assert denoiser.space == "latent"
    assert (denoiser.factor, denoiser.multiple, denoiser.size) == (2, 4, 32)
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    empty = tiny_pipe.encode_prompt("", tiny_pipe.device, 1, False)[0].expand(2, -1, -1)
    raw = tiny_pipe.unet(x, 300, encoder_hidden_states=empty).sample
    torch.testing.assert_close(denoiser.output(x, 300), raw)


def test_models_that_cannot_do_it(tiny, tiny_ddpm):
    with pytest.raises(PrivgenError, match="FlowMatchEulerDiscreteScheduler has no noise schedule"):
        denoiser_of(tiny_ddpm(scheduler=FlowMatchEulerDiscreteScheduler()))
    with pytest.raises(PrivgenError, match="UNet2DModel wants more than an empty prompt"):
        denoiser_of(tiny_ddpm(num_class_embeds=3))
    with pytest.raises(PrivgenError, match="has no UNet"):
        denoiser_of(SimpleNamespace(unet=None))
    with pytest.raises(PrivgenError, match="denoises in latent space, not pixel"):
        DiffPure(model=tiny.tiny_pipeline(), space="pixel").prepare()


def test_overflow_is_an_error(tiny_ddpm, pictures, seeded):
    pipeline = tiny_ddpm()
    pipeline.unet.conv_out.bias.data.fill_(float("nan"))
    with pytest.raises(PrivgenError, match="diffpure: the model's numbers went out of range"):
        DiffPure(strength=2, model=pipeline)(pictures(1, 16, 16), generator=seeded(0))


def test_sde_without_torchsde(tiny_ddpm, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchsde", None)
    with pytest.raises(PrivgenError, match=r"pip install 'privgen\[sde\]'"):
        DiffPure(mode="sde", model=tiny_ddpm()).prepare()
    DiffPure(mode="ode", model=tiny_ddpm()).prepare()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"mode": "dpm"}, "expected mode ddpm, ode, sde, got 'dpm'"),
        ({"space": "image"}, "expected space pixel or latent"),
        ({"strength": 1001}, r"expected a strength in \[0, 1000\] steps of 1000"),
        ({"strength": 10.5}, "expected a whole number"),
        ({"repeats": 0}, "expected repeats and steps >= 1"),
        ({"steps": 0}, "expected repeats and steps >= 1"),
    ],
)
def test_wrong_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        DiffPure(**parameters)


def test_representation(tiny_ddpm, tiny):
    assert repr(DiffPure()) == "DiffPure(strength=100)"
    assert repr(DiffPure(mode="ode", device="cpu")) == "DiffPure(strength=100, mode='ode')"
    assert DiffPure(strength=75, model="some/model").label == "diffpure_75_model_some_model"
    one, same, other = (repr(DiffPure(model=tiny_ddpm(seed))) for seed in (0, 0, 1))
    assert one == same != other
    assert one.startswith("DiffPure(strength=100, model='DDPMPipeline_")
    assert "StableDiffusionPipeline_" in repr(DiffPure(model=tiny.tiny_pipeline()))
    assert "UNet2DModel_" in repr(denoiser_of(tiny_ddpm()))


@pytest.fixture(scope="module")
def folder(tiny, tiny_ddpm, tmp_path_factory):
    """A text-to-image model that carries a pixel denoiser."""
    path = tmp_path_factory.mktemp("model")
    tiny.tiny_pipeline().save_pretrained(path)
    tiny_ddpm().save_pretrained(path / "privgen" / "denoiser")
    return path


@torch.no_grad()
def test_named_models(folder, tiny_ddpm, pictures, seeded):
    assert load_denoiser(folder, device="cpu").space == "pixel"
    assert load_denoiser(folder, space="latent", device="cpu").space == "latent"
    assert (
        load_denoiser(folder / "privgen" / "denoiser", device="cpu", dtype="bfloat16").network.dtype == torch.bfloat16
    )
    with pytest.raises(PrivgenError, match="has no latent denoiser"):
        load_denoiser(folder / "privgen" / "denoiser", space="latent", device="cpu")
    with pytest.raises(PrivgenError, match="There is no model 'nowhere'"):
        DiffPure(model="nowhere").prepare()
    images = pictures(1, 16, 16)
    named = DiffPure(strength=10, model=folder, device="cpu")(images, generator=seeded(0))
    torch.testing.assert_close(named, DiffPure(strength=10, model=tiny_ddpm())(images, generator=seeded(0)))


def test_the_pipeline_stays_as_it_was(tiny_pipe, pictures, seeded):
    before = dict(tiny_pipe.scheduler.config), tiny_pipe.scheduler.timesteps.clone()
    with torch.no_grad():
        DiffPure(strength=20, model=tiny_pipe)(pictures(1, 16, 16), generator=seeded(0))
    assert dict(tiny_pipe.scheduler.config) == before[0]
    assert torch.equal(tiny_pipe.scheduler.timesteps, before[1])
    assert type(tiny_pipe) is StableDiffusionPipeline


MINI = files("privgen") / "models" / "mini" / "privgen"


@pytest.mark.slow
@pytest.mark.skipif(
    not all((MINI / name).is_dir() for name in ("denoiser", "classifier")), reason="mini lacks denoiser or classifier"
)
class TestMini:
    """The figures that mini's own denoiser owes."""

    @pytest.fixture(scope="class")
    def scenes(self):
        from privgen.data.scenes import PREVIEW_SEED, draw_scene

        drawn = [draw_scene(PREVIEW_SEED + 1000 + i) for i in range(60)]
        return torch.stack([torch.from_numpy(scene.pixels) for scene in drawn]), [scene.spec for scene in drawn]

    @torch.no_grad()
    def test_objects_stay(self, scenes, seeded):
        from privgen.metrics.scenes import judge, load_classifier

        images, specs = scenes
        attacked = torch.cat([DiffPure()(part, generator=seeded(0)) for part in images.split(4)])
        before, after = (judge(pictures, specs, load_classifier()) for pictures in (images, attacked))
        same = [set(a.found) == set(b.found) for a, b in zip(before, after, strict=True)]
        assert sum(same) / len(same) >= 0.95

    @torch.no_grad()
    @pytest.mark.parametrize("mode", MODES)
    def test_noise_goes(self, mode, scenes, seeded, psnr):
        images = scenes[0][:8]
        noisy = (images + 0.1 * torch.randn(images.shape, generator=seeded(1))).clamp(0, 1)
        attacked = DiffPure(mode=mode)(noisy, generator=seeded(0))
        assert psnr(attacked, images) >= psnr(noisy, images) + 3

    @torch.no_grad()
    def test_quality_falls_over_the_sweep(self, realistic, psnr, seeded):
        quality = [psnr(DiffPure(strength=s)(realistic, generator=seeded(0)), realistic) for s in DiffPure.sweep]
        assert quality == sorted(quality, reverse=True)
        assert quality[0] > quality[-1] + 0.5

    @torch.no_grad()
    def test_ode_is_the_reference_integration(self, scenes):
        denoiser = load_denoiser(device="cpu")
        x_t = add_noise(denoiser, 2 * scenes[0][:1, :, :64, :64].double() - 1, 100, [torch.Generator().manual_seed(0)])
        error = reverse_ode(denoiser, x_t, 100) - integrate(denoiser, x_t, 100)
        assert float(error.square().mean().sqrt()) < 0.01
