"""The extractor: what its encoder sees, how it weighs its bits, whitening, saving."""

import pytest
import torch

from privgen.diffusion.latents import encode
from privgen.models.extractor import LEAST_VARIANCE, Extractor


N_BITS, PILOTS, SIZE = 8, 4, 32


@pytest.fixture
def vae(tiny):
    return tiny.tiny_pipeline("sd21").vae


@pytest.fixture
def extractor(vae):
    """Reads numbers as they stand in the first latents: bits, then pilots."""
    extractor = Extractor.from_vae(vae, N_BITS, PILOTS).eval()
    width = N_BITS + PILOTS
    torch.nn.init.eye_(extractor.filters.weight.data[:, :width])
    extractor.filters.weight.data[:, width:] = 0.0
    extractor.filters.bias.data.zero_()
    return extractor


def images(n=2, size=SIZE):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def read(extractor, bits, pilots):
    parts = ((bits, N_BITS), (pilots, PILOTS))
    readings = torch.cat([torch.as_tensor(part, dtype=torch.float32).expand(n) for part, n in parts])
    unused = extractor.filters.in_features - len(readings)
    extractor.encode = lambda _: torch.nn.functional.pad(readings, (0, unused))[None]
    return extractor(images(1))[0]


def test_it_encodes_to_the_scaled_latents(vae):
    extractor = Extractor.from_vae(vae, N_BITS, PILOTS)
    with torch.no_grad():
        torch.testing.assert_close(extractor.encode(images()), encode(vae, images()))


def test_encoding_of_a_vae_without_quant_conv(vae):
    vae.quant_conv = None
    extractor = Extractor.from_vae(vae, N_BITS, PILOTS)
    with torch.no_grad():
        torch.testing.assert_close(extractor.encode(images()), encode(vae, images()))


def test_other_sizes_are_resized(extractor):
    assert extractor(images(1, 50)).shape == (1, N_BITS)


def test_logits_are_log_likelihood_ratios(extractor):
    """log p(y | 1) / p(y | 0) = 2 y / variance for Gaussian noise."""
    message, noise = torch.tensor([1.0, -1, 0.5, 1, -1, -1, 1, -0.5]), 0.5
    logits = read(extractor, message, noise)
    torch.testing.assert_close(logits, 2 * message / (noise**2 + LEAST_VARIANCE))


def test_loud_content_makes_bits_less_sure(extractor):
    message = torch.tensor([1.0, -1, 1, 1, -1, -1, 1, -1])
    quiet, loud = read(extractor, message, 0.3), read(extractor, message, 2.0)
    assert ((quiet > 0) == (loud > 0)).all()
    assert (loud.abs() < quiet.abs()).all()


def test_whitening(vae):
    extractor = Extractor.from_vae(vae, N_BITS, PILOTS).eval()
    with torch.no_grad():
        logits = extractor(images(200))
        extractor.fit_whitening(logits)
        white = extractor(images(200))
    torch.testing.assert_close(white.mean(0), torch.zeros(N_BITS), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(N_BITS), atol=0.01, rtol=0)


@pytest.mark.parametrize(("loudness", "whitened"), [(1.0, 1.0), (4.0, 1.0), (6.0, 0.5), (8.0, 0.0), (50.0, 0.0)])
def test_loud_logits_are_scaled_only(extractor, loudness, whitened):
    mixing = torch.randn(N_BITS, N_BITS, generator=torch.Generator().manual_seed(1))
    extractor.fit_whitening(torch.randn(500, N_BITS, generator=torch.Generator().manual_seed(2)) @ mixing)
    read = torch.randn(3, N_BITS, generator=torch.Generator().manual_seed(3))
    read *= (loudness / (read @ extractor.whitening).square().mean(dim=1, keepdim=True)).sqrt()
    expected = torch.lerp(read * extractor.whitening.diagonal(), read @ extractor.whitening, whitened)
    torch.testing.assert_close(extractor.apply_whitening(read + extractor.mean), expected)


def test_saved_and_loaded(extractor, tmp_path):
    extractor.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(Extractor.from_pretrained(tmp_path)(images()), extractor(images()))


def test_bfloat16(vae):
    extractor = Extractor.from_vae(vae, N_BITS, PILOTS).to(torch.bfloat16)
    with torch.no_grad():
        logits = extractor(images())
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@pytest.fixture
def considerate(extractor, tiny):
    """The same with a U-Net that adds nothing yet."""
    pipe = tiny.tiny_pipeline("sd21")
    patterns = torch.randn(N_BITS, extractor.filters.in_features, generator=torch.Generator().manual_seed(1))
    context = torch.randn(1, 5, pipe.unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(2))
    return extractor.with_unet(pipe.vae, pipe.unet, context, patterns).eval()


@torch.no_grad()
def test_a_unet_adds_nothing_before_it_is_trained(extractor, considerate):
    assert torch.equal(considerate(images()), extractor(images()))


@torch.no_grad()
def test_what_a_unet_finds_of_a_pattern_is_added_to_its_bit(considerate):
    """The output's bias is found everywhere, so that each bit gets its product with the pattern of length 1."""
    considerate.unet.conv_out.bias.fill_(0.5)
    added = 0.5 * considerate.readout.weight.sum(dim=1)
    torch.testing.assert_close(considerate.denoiser_logits(images())[0], added)
    bits, variance = considerate.filter_logits(considerate.encode(images()))
    torch.testing.assert_close(considerate(images()), 2 * bits / variance + added)
    torch.testing.assert_close(considerate.readout.weight.norm(dim=1), torch.ones(N_BITS))


@torch.no_grad()
def test_a_unet_is_saved_with_the_extractor(considerate, tmp_path):
    torch.nn.init.normal_(considerate.unet.conv_out.weight, generator=torch.Generator().manual_seed(3))
    considerate.save_pretrained(tmp_path)
    loaded = Extractor.from_pretrained(tmp_path).eval()
    assert torch.equal(loaded(images()), considerate(images()))
    torch.testing.assert_close(
        considerate.bfloat16()(images()).float(), loaded(images()), atol=0.05 * float(loaded(images()).std()), rtol=0.1
    )
