"""Marks in what pipelines of every family generate: added to the latents, unpacked and unscaled, before decoding."""

import pytest
import torch
from diffusers import AutoencoderKL

from privgen import Key, Watermark
from privgen.models.autoencoder import load_autoencoder
from privgen.models.initialise import seeded_weights
from privgen.models.mappers import LatentMapper
from privgen.training.watermark.adapt import CodeSize, adapt
from privgen.watermark.key import Secret
from privgen.watermark.networks import Networks
from privgen.watermark.protocols import key_bits


FAMILIES = {"sd15": "taesd", "sd21": "taesd", "sdxl": "taesdxl", "sd3": "taesd3", "flux": "taef1"}
"""The shapes of `tests/tiny.py`, and a real autoencoder for each."""
ALICE, BOB = (Key(name, Secret(bytes([number]) * 32)) for number, name in enumerate(("alice", "bob")))


def made_autoencoder():
    """Random, and with what real ones have: a scale, and a shift as in Stable Diffusion 3 and FLUX."""
    with seeded_weights(0):
        vae = AutoencoderKL(
            block_out_channels=(8, 8),
            norm_num_groups=8,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            scaling_factor=0.36,
            shift_factor=0.12,
        )
    return vae.eval()


def generate(pipe, height, width, prompt="a cat"):
    settings = {"num_inference_steps": 2, "guidance_scale": 3.0, "output_type": "pt"}
    if hasattr(pipe, "transformer"):
        settings["max_sequence_length"] = 16
    seeded = torch.Generator().manual_seed(0)
    return pipe(prompt, height=height, width=width, generator=seeded, **settings).images


@pytest.fixture
def decoded(monkeypatch):
    """The latents that an autoencoder was asked to decode, below whatever a mark does to its `decode`."""
    seen = []

    def watch(vae):
        inner = vae._decode
        monkeypatch.setattr(vae, "_decode", lambda z, *args, **kwargs: seen.append(z) or inner(z, *args, **kwargs))
        return seen

    return watch


@pytest.mark.parametrize("family", FAMILIES)
def test_the_pattern_is_added_to_latents_as_the_autoencoder_takes_them(family, tiny, decoded):
    """Not packed, not scaled, two keys for two images, and wider than high."""
    pipe, mapper = tiny.tiny_of_family(family, made_autoencoder()), LatentMapper(16, 4, 16, strength=0.2)
    seen, prompts = decoded(pipe.vae), ["a cat", "a dog"]
    plain = generate(pipe, 32, 48, prompts)
    with Watermark(Networks.of(pipeline=pipe, latent_mapper=mapper)).on(pipe, [ALICE, BOB]):
        marked = generate(pipe, 32, 48, prompts)
    assert marked.shape == plain.shape == (2, 3, 32, 48)
    with torch.no_grad():
        pattern = mapper(key_bits([ALICE, BOB], mapper), height=16, width=24)
    torch.testing.assert_close(seen[1] - seen[0], pattern / 0.36, rtol=0, atol=1e-5)
    assert torch.equal(generate(pipe, 32, 48, prompts), plain), "the pipeline is as before"


@pytest.mark.parametrize("family", FAMILIES)
def test_marks_are_read_from_what_real_autoencoders_decode(family, tiny, real_autoencoder):
    """Wider than the square. The latents of random networks are loud noise, so the mark is loud, too."""
    vae = load_autoencoder(real_autoencoder(FAMILIES[family]))
    made = adapt(vae, 256, code=CodeSize(n_bits=24, psnr=6, examples=2))
    pipe = tiny.tiny_of_family(family, vae, sample=32)
    mark = Watermark(Networks.of(pipeline=pipe, extractor=made.extractor, latent_mapper=made.latent_mapper))
    plain = generate(pipe, 256, 384)
    with mark.on(pipe, ALICE):
        marked = generate(pipe, 256, 384)
    found = mark.detect([marked[0], plain[0]], [ALICE, BOB], fpr=1e-6)
    assert [one.key for one in found] == ["alice", None]
    assert found[0].p_value <= 1e-6
