import pytest
import torch
from diffusers import AutoencoderTiny, UNet2DModel

from privgen.diffusion.latents import decode, encode
from privgen.errors import PrivgenError, UsageError
from privgen.hub import load_pipeline
from privgen.models.autoencoder import load_autoencoder
from privgen.models.family import Canvas
from privgen.models.initialise import seeded_weights


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny autoencoder with the factor and channels of Stable Diffusion's."""
    path = tmp_path_factory.mktemp("vae")
    widths = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    with seeded_weights(0):
        AutoencoderTiny(**widths, num_decoder_blocks=(1,) * 4, num_encoder_blocks=(1,) * 4).half().save_pretrained(
            path
        )
    return path


def test_it_is_frozen_in_float32_and_knows_its_size(folder):
    vae = load_autoencoder(folder, size=64)
    assert vae.dtype == torch.float32
    assert not vae.training
    assert not any(p.requires_grad for p in vae.parameters())
    assert Canvas.of_vae(vae) == Canvas(64, 8, 4)
    latents = encode(vae, torch.rand(2, 3, 64, 64))
    assert latents.shape == (2, 4, 8, 8)
    assert decode(vae, latents).shape == (2, 3, 64, 64)


def test_other_networks_are_refused(folder, tmp_path):
    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    UNet2DModel(block_out_channels=(8,), norm_num_groups=4, **blocks).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="UNet2DModel; name one of AutoencoderKL or AutoencoderTiny"):
        load_autoencoder(tmp_path)
    with pytest.raises(PrivgenError, match="no-such-folder"):
        load_autoencoder("/no-such-folder")


def test_mini_sd_needs_an_autoencoder(folder):
    with pytest.raises(PrivgenError, match=r"mini-sd needs an autoencoder.*madebyollin/taesd"):
        load_pipeline("mini-sd", device="cpu")
    pipe = load_pipeline("mini-sd", vae=folder, device="cpu")
    images = pipe("a cat", num_inference_steps=1, output_type="np").images
    assert images.shape == (1, 128, 128, 3)
    half = load_pipeline("mini-sd", vae=folder, device="cpu", dtype="bfloat16")
    assert {half.vae.dtype, half.unet.dtype, half.text_encoder.dtype} == {torch.bfloat16}


def test_mini_sd_draws_scenes_through_a_real_autoencoder(real_autoencoder):
    pipe = load_pipeline("mini-sd", vae=real_autoencoder("taesd"), device="cpu")
    images = pipe(
        "a cat on a blue background",
        num_inference_steps=10,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images
    red, _, blue = images[0, :, :12].mean(dim=(1, 2))  # the background, above the cat
    assert float(blue - red) > 0.2
    centre = images[0, :, 40:88, 40:88].mean(dim=(1, 2))
    assert float(centre[0] - red) > 0.2  # the cat is orange
