import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from privgen.data.scenes import draw_scene
from privgen.diffusion.latents import decode, encode
from privgen.diffusion.unrolled_ddim import Schedule, UnrolledDDIM, ddim_step
from privgen.hub import load_pipeline
from privgen.protection.inversion import denoise, inverse_step, inversion_timesteps, invert


EMBEDS = torch.zeros(1, 1, 1)


def model(function, prediction="epsilon"):
    """A model that answers `function(z, alpha_bar)`."""
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", prediction_type=prediction, clip_sample=False)
    schedule = Schedule.of(scheduler)

    def unet(z, timestep, encoder_hidden_states, return_dict):
        return (function(z, schedule.alpha(timestep)),)

    return UnrolledDDIM(unet, schedule, guidance_scale=1.0)


def best_for_gaussians(variance, prediction):
    """The best predictions for data of mean 0 and a variance; all of them are linear."""

    def predict(z, alpha_bar):
        alpha, sigma = alpha_bar**0.5, (1 - alpha_bar) ** 0.5
        total = alpha_bar * variance + 1 - alpha_bar
        noise, original = sigma * z / total, alpha * variance * z / total
        velocity = alpha * noise - sigma * original
        return {"epsilon": noise, "sample": original, "v_prediction": velocity}[prediction]

    return predict


def psnr(images, reference):
    return float(-10 * torch.log10((images - reference).square().mean()))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_an_inverse_step_undoes_a_step(prediction, generator):
    z_t, output = (torch.randn(2, 4, 8, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    z = ddim_step(z_t, output, 0.2, 0.7, prediction)
    torch.testing.assert_close(inverse_step(z, z_t, output, 0.7, 0.2, prediction), z_t)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_gaussians_are_inverted_to_the_closed_form(prediction, generator):
    """Each step multiplies by a number, so inversion divides by it."""
    variance = 0.5
    ddim = model(best_for_gaussians(variance, prediction), prediction)
    timesteps = inversion_timesteps(ddim.schedule, 4)
    z_0 = torch.randn(2, 3, 4, 4, generator=generator)
    found = invert(z_0, ddim, timesteps, EMBEDS, iterations=60)
    expected = z_0
    for then, now in zip([None, *reversed(timesteps)], reversed(timesteps), strict=False):
        a, b = ddim.schedule.alpha(now), ddim.schedule.alpha(then)
        total = a * variance + 1 - a
        # x_0 and eps of a sample, put together at the other level (arXiv 2010.02502, equation 12).
        expected = expected / ((a * b) ** 0.5 * variance / total + ((1 - a) * (1 - b)) ** 0.5 / total)
    torch.testing.assert_close(found.noise, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(denoise(found.noise, ddim, timesteps, EMBEDS), z_0, rtol=1e-4, atol=1e-4)


def test_noise_that_does_not_depend_on_the_latents_needs_no_iteration(generator):
    noise, z_0 = torch.randn(2, 1, 3, 4, 4, generator=generator)
    ddim = model(lambda z, alpha_bar: noise)
    timesteps = inversion_timesteps(ddim.schedule, 3)
    found = invert(z_0, ddim, timesteps, EMBEDS, iterations=0)
    torch.testing.assert_close(denoise(found.noise, ddim, timesteps, EMBEDS), z_0, rtol=1e-4, atol=1e-4)


def test_timesteps_are_those_of_diffusers():
    scheduler = DDIMScheduler(timestep_spacing="trailing")
    for steps in (1, 3, 4, 8):
        scheduler.set_timesteps(steps)
        assert inversion_timesteps(Schedule.of(scheduler), steps) == scheduler.timesteps.tolist()


def test_residuals_make_the_way_back_exact(tiny_pipe, generator):
    """With a model that knows nothing, in two steps, and without iterations."""
    ddim = UnrolledDDIM(tiny_pipe.unet, Schedule.of(tiny_pipe.scheduler), guidance_scale=1.0)
    embeds = torch.randn(1, 77, 32, generator=generator)
    z_0 = torch.randn(2, 4, 16, 16, generator=generator)
    timesteps = inversion_timesteps(ddim.schedule, 2)
    with torch.no_grad():
        found = invert(z_0, ddim, timesteps, embeds, iterations=0)
        back = denoise(found.noise, ddim, timesteps, embeds, found.residuals)
        without = denoise(found.noise, ddim, timesteps, embeds)
    torch.testing.assert_close(back, z_0, rtol=0, atol=1e-4)
    assert (without - z_0).abs().max() > 1e-2


def test_a_batch_is_inverted_as_its_images_are(tiny_pipe, generator):
    ddim = UnrolledDDIM(tiny_pipe.unet, Schedule.of(tiny_pipe.scheduler), guidance_scale=1.0)
    embeds = torch.randn(1, 77, 32, generator=generator)
    z_0 = torch.randn(2, 4, 16, 16, generator=generator)
    timesteps = inversion_timesteps(ddim.schedule, 2)
    with torch.no_grad():
        both = invert(z_0, ddim, timesteps, embeds)
        one = invert(z_0[1:], ddim, timesteps, embeds)
    torch.testing.assert_close(both.noise[1:], one.noise, rtol=1e-4, atol=1e-4)


def test_fixed_points_beat_plain_inversion_on_scenes():
    """In 4 steps, against the autoencoder's own reconstruction: about 25 and 38 dB."""
    pipe = load_pipeline("mini", device="cpu")
    ddim = UnrolledDDIM(pipe.unet, Schedule.of(pipe.scheduler), guidance_scale=1.0)
    timesteps = inversion_timesteps(ddim.schedule, 4)
    pixels = torch.from_numpy(np.stack([draw_scene(7 * 10**9 + i, size=128).pixels for i in range(2)]))
    with torch.no_grad():
        embeds = pipe.encode_prompt("", "cpu", 1, False)[0]
        z_0 = encode(pipe.vae, pixels)
        found = {}
        for iterations in (0, 3):
            noise = invert(z_0, ddim, timesteps, embeds, iterations=iterations).noise
            back = denoise(noise, ddim, timesteps, embeds)
            found[iterations] = psnr(decode(pipe.vae, back), decode(pipe.vae, z_0))
    assert found[3] > 35
    assert found[3] > found[0] + 8


def test_bad_numbers_are_refused():
    ddim = model(lambda z, alpha_bar: z)
    for steps in (0, 1001):
        with pytest.raises(ValueError, match="expected 1 to 1000 denoising steps"):
            inversion_timesteps(ddim.schedule, steps)
    with pytest.raises(ValueError, match="expected 0 or more iterations"):
        invert(torch.zeros(1, 3, 4, 4), ddim, [999], EMBEDS, iterations=-1)
