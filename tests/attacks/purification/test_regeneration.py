"""Regeneration, rinsing and the autoencoder's round trip: their arithmetic, and their contract on tiny models."""

import pytest
import torch
from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionImg2ImgPipeline

from privgen.attacks import Regeneration, Rinsing, VaeRoundTrip, parse_attack
from privgen.attacks.purification.regeneration import fraction_of, image_to_image, step_length
from privgen.errors import PrivgenError


@pytest.fixture(scope="module")
def pipeline(tiny):
    return tiny.tiny_pipeline("sd21")


def test_steps_lead_from_t_to_0_exactly():
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    assert [step_length(t, 20) for t in (30, 60, 100, 7, 1000)] == [10, 20, 20, 1, 20]
    for t in (1, 7, 30, 60, 65, 100, 500, 1000):
        length = step_length(t, 20)
        total, steps = 1000 // length, t // length
        scheduler.set_timesteps(total)
        assert scheduler.timesteps[total - steps :].tolist() == list(range(t - 1, -1, -length))


def test_fractions_are_rounded_down_right():
    """As Stable Diffusion's pipelines count steps, and as Flux's do."""
    for total in (1000, 125, 50, 100):
        for steps in range(1, total + 1):
            fraction = fraction_of(steps, total)
            assert int(total * fraction) == steps
            assert total - int(max(total - min(total * fraction, total), 0)) in (steps, steps + 1)
    for t in Regeneration.sweep:
        total, steps = 1000 // step_length(t, 20), t // step_length(t, 20)
        assert total - int(max(total - min(total * fraction_of(steps, total), total), 0)) == steps


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["", "a cat"])
def test_it_is_image_to_image_at_that_noise(prompt, tiny_pipe, pictures, seeded):
    """Against latents that are encoded, noised and denoised by hand with Diffusers' DDIM."""
    images = pictures(1, 32, 32)
    found = Regeneration(strength=60, prompt=prompt, guidance_scale=4.0, model=tiny_pipe)(images, generator=seeded(3))
    source = torch.Generator().manual_seed(int(torch.randint(2**63 - 1, (1,), generator=seeded(3))))
    vae, unet = tiny_pipe.vae, tiny_pipe.unet
    scheduler = DDIMScheduler.from_config(tiny_pipe.scheduler.config, timestep_spacing="trailing")
    scheduler.set_timesteps(50)
    z = vae.encode(2 * images - 1).latent_dist.sample(source) * vae.config.scaling_factor
    z = scheduler.add_noise(z, torch.randn(z.shape, generator=source), torch.tensor([59]))
    text, empty = tiny_pipe.encode_prompt(prompt, "cpu", 1, True, "")
    for t in (59, 39, 19):
        said, plain = (unet(z, t, encoder_hidden_states=hidden).sample for hidden in (text, empty))
        z = scheduler.step(plain + 4.0 * (said - plain) if prompt else said, t, z).prev_sample
    expected = (vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=0)


ATTACKS = [VaeRoundTrip(), VaeRoundTrip(strength=2), Regeneration(strength=30), Rinsing(strength=2, t=20)]


@torch.no_grad()
@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_contract(attack, pipeline, pictures, seeded, keeps_contract):
    attack = type(attack)(
        strength=attack.strength, model=pipeline, **({"t": attack.t} if isinstance(attack, Rinsing) else {})
    )
    images = pictures(2, 21, 34)
    keeps_contract(attack, images)
    half = images.bfloat16()
    assert torch.equal(attack(half, generator=seeded(5, 6)), attack(half.float(), generator=seeded(5, 6)).bfloat16())


@torch.no_grad()
@pytest.mark.parametrize("cls", [VaeRoundTrip, Regeneration, Rinsing])
def test_identity_changes_nothing(cls, pipeline, pictures):
    images = pictures(1, 33, 20)
    assert torch.equal(cls(strength=0, model=pipeline)(images), images)


@torch.no_grad()
@pytest.mark.parametrize("size", [(1, 1), (5, 70)])
@pytest.mark.parametrize("cls", [VaeRoundTrip, Regeneration])
def test_any_size(cls, size, pipeline, seeded):
    assert cls(strength=1, model=pipeline)(torch.full((1, 3, *size), 0.5), generator=seeded(0)).shape[2:] == size


@torch.no_grad()
@pytest.mark.parametrize("cls", [VaeRoundTrip, Regeneration])
def test_weights_in_bfloat16(cls, tiny, pictures, seeded, psnr):
    """Within 25 dB, for random weights: the pipeline keeps latents and noise in bfloat16 too."""
    images = pictures(1, 32, 32)
    run = lambda model: cls(strength=1, model=model)(images, generator=seeded(0))  # noqa: E731
    assert psnr(run(tiny.tiny_pipeline("sd21").to(torch.bfloat16)), run(tiny.tiny_pipeline("sd21"))) > 25


@torch.no_grad()
def test_rinsing_is_regeneration_again_and_again(pipeline, pictures, seeded):
    images = pictures(1, 16, 16)
    twice = Rinsing(strength=2, t=40, model=pipeline)(images, generator=seeded(0))
    once = Rinsing(strength=1, t=40, model=pipeline)(images, generator=seeded(0))
    torch.testing.assert_close(once, Regeneration(strength=40, model=pipeline)(images, generator=seeded(0)))
    assert not torch.allclose(once, twice, atol=1e-3)


@torch.no_grad()
def test_round_trip_is_the_autoencoder(pipeline, pictures):
    images = pictures(1, 16, 16)
    vae = pipeline.vae
    expected = vae.decode(vae.encode(2 * images - 1).latent_dist.mean).sample / 2 + 0.5
    torch.testing.assert_close(VaeRoundTrip(model=pipeline)(images), expected.clamp(0, 1))


@torch.no_grad()
def test_round_trip_of_an_autoencoder_without_distribution(tiny, pictures):
    pipeline = tiny.tiny_pipeline()
    pipeline.vae = AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8),
                                   num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval()  # fmt: skip
    images = pictures(1, 17, 16)
    assert VaeRoundTrip(model=pipeline)(images).shape == images.shape


def test_gradients_flow_through_the_round_trip(pipeline, pictures):
    images = pictures(1, 16, 16).requires_grad_()
    VaeRoundTrip(model=pipeline)(images).square().sum().backward()
    assert images.grad.abs().sum() > 0


def test_the_pipeline_stays_as_it_was(tiny_pipe):
    before = tiny_pipe.scheduler, dict(tiny_pipe.scheduler.config), dict(tiny_pipe._progress_bar_config)
    found = image_to_image(tiny_pipe)
    assert isinstance(found, StableDiffusionImg2ImgPipeline)
    assert found.unet is tiny_pipe.unet
    assert (tiny_pipe.scheduler, dict(tiny_pipe.scheduler.config), tiny_pipe._progress_bar_config) == before


def test_pipelines_of_this_package_and_others(tiny, tiny_ddpm):
    from privgen.pipelines.pipeline_stable_diffusion_watermark import StableDiffusionWatermarkPipeline

    mine = tiny.tiny_pipeline(cls=StableDiffusionWatermarkPipeline)
    assert isinstance(image_to_image(mine), StableDiffusionImg2ImgPipeline)
    with pytest.raises(PrivgenError, match="DDPMPipeline has no image-to-image form"):
        Regeneration(model=tiny_ddpm()).prepare()
    with pytest.raises(PrivgenError, match="DDPMPipeline has no autoencoder"):
        VaeRoundTrip(model=tiny_ddpm()).prepare()
    with pytest.raises(PrivgenError, match="There is no model 'nowhere'"):
        Rinsing(model="nowhere").prepare()


def test_as_text():
    assert parse_attack("regeneration=100,prompt=a cat") == Regeneration(strength=100, prompt="a cat")
    assert repr(Rinsing(strength=2)) == "Rinsing(strength=2)"
    assert Rinsing(strength=2, t=30).label == "rinsing_2_t_30"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regeneration(stride=0), r"expected stride in 1\.\.1000"),
        (lambda: Rinsing(t=0), r"rinsing: expected t in 1\.\.1000"),
        (lambda: Regeneration(strength=1500), r"expected a strength in \[0, 1000\]"),
    ],
)
def test_wrong_parameters(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("cls", [Regeneration, Rinsing])
def test_quality_falls_over_the_sweep(cls, realistic, psnr, seeded):
    """With mini, each picture below what the autoencoder alone leaves of it."""
    quality = [psnr(VaeRoundTrip()(realistic), realistic)]
    quality += [psnr(cls(strength=s)(realistic, generator=seeded(0)), realistic) for s in cls.sweep]
    assert quality == sorted(quality, reverse=True)
    assert quality[0] > quality[-1] + 0.5
