"""Neural codecs: their arithmetic, and the attack's contract, on small random ones."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from privgen.attacks import NeuralCodecRoundTrip, get_attack, load_neural_codec
from privgen.errors import PrivgenError


N, M = 4, 6


def draw(*shape, low=0.0, high=1.0, seed=0):
    return low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def stored(hyperprior=False):
    """A state dict as CompressAI writes it, of a codec that keeps the mean colour of places and a little more."""
    weights = {}
    channels = {"g_a": (3, N, N, N, M), "g_s": (M, N, N, N, 3)}
    for name, sizes in channels.items():
        low, high = (-0.2, 0.4) if name == "g_a" else (-0.02, 0.035)
        for i, (n_in, n_out) in enumerate(pairwise(sizes)):
            shape = (n_out, n_in, 5, 5) if name == "g_a" else (n_in, n_out, 5, 5)
            weights[f"{name}.{2 * i}.weight"] = draw(*shape, low=low, high=high, seed=i)
            weights[f"{name}.{2 * i}.bias"] = draw(n_out, low=-0.1, high=0.1, seed=i)
            if i:
                weights[f"{name}.{2 * i - 1}.beta"] = 1 + draw(n_in, seed=i)
                weights[f"{name}.{2 * i - 1}.gamma"] = draw(n_in, n_in, low=-0.1, high=0.3, seed=i)
                weights[f"{name}.{2 * i - 1}.beta_reparam.pedestal"] = torch.tensor([2.0**-36])
    weights["entropy_bottleneck.quantiles"] = draw(M, 1, 3, low=-0.5, high=0.5)
    return weights | ({"h_a.0.weight": torch.zeros(N, M, 3, 3)} if hyperprior else {})


def by_hand(weights, x, medians):
    """Balle et al.: convolutions and normalisations, rounding, and back."""

    def normalise(name, x, power):
        beta, gamma = weights[f"{name}.beta"].square(), weights[f"{name}.gamma"].clamp(min=0).square()
        return x * (beta[:, None, None] + torch.einsum("ij,bjhw->bihw", gamma, x.square())) ** power

    for i in range(4):
        x = normalise(f"g_a.{2 * i - 1}", x, -0.5) if i else x
        x = F.conv2d(x, weights[f"g_a.{2 * i}.weight"], weights[f"g_a.{2 * i}.bias"], stride=2, padding=2)
    x = (x - medians).round() + medians
    for i in range(4):
        x = normalise(f"g_s.{2 * i - 1}", x, 0.5) if i else x
        weight, bias = weights[f"g_s.{2 * i}.weight"], weights[f"g_s.{2 * i}.bias"]
        x = F.conv_transpose2d(x, weight, bias, stride=2, padding=2, output_padding=1)
    return x


@pytest.fixture(scope="module", params=["factorized", "hyperprior"])
def weights(request):
    return stored(request.param == "hyperprior")


@pytest.fixture(scope="module")
def file(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("codec") / "codec.safetensors"
    save_file(weights, path)
    return path


def test_it_is_the_codec_of_the_paper(weights, file, pictures):
    images = pictures(2, 32, 48)
    medians = 0.0 if "h_a.0.weight" in weights else weights["entropy_bottleneck.quantiles"][:, :, 1:2]
    expected = by_hand(weights, images, medians)
    assert expected.std() > 0.03
    torch.testing.assert_close(load_neural_codec(file)(images), expected, atol=1e-4, rtol=1e-4)
    attacked = NeuralCodecRoundTrip(model=file, device="cpu")(images)
    torch.testing.assert_close(attacked, expected.clamp(0, 1), atol=1e-4, rtol=0)


def test_contract(file, pictures, seeded, keeps_contract):
    attack = NeuralCodecRoundTrip(model=str(file), device="cpu")
    images = pictures(2, 21, 34)
    keeps_contract(attack, images)
    half = images.bfloat16()
    assert torch.equal(attack(half), attack(half.float()).bfloat16())
    assert torch.equal(NeuralCodecRoundTrip(strength=0, model=file)(images), images)
    again = NeuralCodecRoundTrip(strength=2, model=file, device="cpu")(images)
    torch.testing.assert_close(again, attack(attack(images)), atol=1e-4, rtol=0)


def test_weights_in_bfloat16(file, pictures, psnr):
    images = pictures(1, 32, 32)
    run = lambda dtype: NeuralCodecRoundTrip(model=file, dtype=dtype, device="cpu")(images)  # noqa: E731
    assert psnr(run("bfloat16"), run("float32")) > 30


@pytest.mark.parametrize("size", [(1, 1), (5, 70)])
def test_any_size(file, size):
    assert NeuralCodecRoundTrip(model=file, device="cpu")(torch.full((1, 3, *size), 0.5)).shape[2:] == size


def test_gradients_pass_rounding(file, pictures):
    images = pictures(1, 16, 16).requires_grad_()
    load_neural_codec(file)(images).square().sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.abs().sum() > 0


def test_a_state_dict_of_pytorch_is_read_too(weights, file, tmp_path, pictures):
    torch.save(weights, tmp_path / "codec.pth.tar")
    images = pictures(1, 16, 16)
    assert torch.equal(load_neural_codec(tmp_path / "codec.pth.tar")(images), load_neural_codec(file)(images))


def test_what_is_missing_is_said(file, tmp_path):
    with pytest.raises(PrivgenError, match="neural_codec needs weights"):
        get_attack("neural_codec").prepare()
    with pytest.raises(PrivgenError, match="cannot be read"):
        load_neural_codec(tmp_path / "absent.safetensors")
    (tmp_path / "code.pth").write_bytes(b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.")
    with pytest.raises(PrivgenError, match="cannot be read"):
        load_neural_codec(tmp_path / "code.pth")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(PrivgenError, match="does not hold a bmshj2018 codec"):
        load_neural_codec(tmp_path / "other.safetensors")
    save_file({k: v for k, v in stored().items() if k != "g_s.3.beta"}, tmp_path / "part.safetensors")
    with pytest.raises(PrivgenError, match="incomplete"):
        load_neural_codec(tmp_path / "part.safetensors")
