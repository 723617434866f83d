import pytest
import torch
from diffusers import DDIMScheduler

from privgen.diffusion.sampling import Sampling
from privgen.errors import UsageError
from privgen.models.initialise import seeded_weights
from privgen.models.mappers import TokenMapper
from privgen.watermark.key import Key, Secret
from privgen.watermark.token import encode_with_token, issue_token
from privgen.watermark.write.with_token import token_residuals


KEY = Key("alice", Secret(bytes(range(32))))


@pytest.fixture(scope="module")
def mapper():
    with seeded_weights(0):
        return TokenMapper(48, vectors=2, width=32, hidden=16, tau=401)


def canvases(n=2):
    return torch.rand(n, 3, 32, 32, generator=torch.Generator().manual_seed(5))


def generators(n=2):
    return [torch.Generator().manual_seed(seed) for seed in range(n)]


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_equals_diffusers_own_steps(tiny_pipe, mapper, guidance_scale):
    token = issue_token(mapper, KEY)
    actual = token_residuals(
        canvases(), token, pipe=tiny_pipe, generator=generators(), tau=401, sampling=Sampling(10, guidance_scale)
    )
    plain = tiny_pipe.encode_prompt("", "cpu", 1, False)[0].expand(2, -1, -1)
    marked = encode_with_token(tiny_pipe, ["", ""], token)
    scheduler = DDIMScheduler.from_config(tiny_pipe.scheduler.config)
    images = []
    with torch.no_grad():
        z_0 = tiny_pipe.vae.encode(2 * canvases() - 1).latent_dist.mode() * tiny_pipe.vae.config.scaling_factor
        noise = torch.cat([torch.randn(1, *z_0.shape[1:], generator=g) for g in generators()])
        for embeds in (plain, marked):
            scheduler.set_timesteps(10)
            below = [t for t in scheduler.timesteps if t <= 401]
            z = scheduler.add_noise(z_0, noise, below[0])
            for t in below:
                without, with_token = (tiny_pipe.unet(z, t, encoder_hidden_states=e).sample for e in (plain, embeds))
                z = scheduler.step(without + guidance_scale * (with_token - without), t, z).prev_sample
            images.append(tiny_pipe.vae.decode(z / tiny_pipe.vae.config.scaling_factor).sample / 2)
    assert len(below) == 5
    torch.testing.assert_close(actual, images[1] - images[0], rtol=1e-3, atol=1e-5)
    assert actual.abs().max() > 1e-4


def test_many_are_as_one(tiny_pipe, mapper):
    token = issue_token(mapper, KEY)
    together = token_residuals(canvases(), token, pipe=tiny_pipe, generator=generators(), tau=401)
    for index, generator in enumerate(generators()):
        alone = token_residuals(canvases()[index : index + 1], token, pipe=tiny_pipe, generator=generator, tau=401)
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-3, atol=1e-5)


def test_tau(tiny_pipe, mapper):
    token = issue_token(mapper, KEY)
    options = {"pipe": tiny_pipe, "generator": torch.Generator()}
    with pytest.raises(ValueError, match="one of 4 timesteps at or below tau = 0"):
        token_residuals(canvases(), token, tau=0, sampling=Sampling(4), **options)
    with pytest.raises(ValueError, match=r"tau in 0\.\.1000"):
        token_residuals(canvases(), token, tau=1001, **options)
    with pytest.raises(UsageError, match="leaves room for"):
        token_residuals(canvases(), token, prompt="word " * 80, **options)
