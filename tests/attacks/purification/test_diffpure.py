"""DiffPure: its contract on tiny random models, and what mini's denoiser makes of scenes."""

from importlib.resources import files
from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
)

from privgen.attacks import Denoiser, DiffPure, load_denoiser
from privgen.attacks.purification.denoiser import denoiser_of
from privgen.attacks.purification.diffpure import MODES, purify
from privgen.errors import PrivgenError


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
    assert (denoiser.patch, denoiser.multiple, denoiser.size) == (2, 4, 32)
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
