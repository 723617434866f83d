"""The extractor: what its encoder sees, how it weighs its bits, whitening, saving."""

import pytest
import torch

from privgen.models.watermark import LEAST_VARIANCE, Extractor
from privgen.watermark.embed import encode_canvas


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
        torch.testing.assert_close(extractor.encode(images()), encode_canvas(vae, images()))


def test_encoding_of_a_vae_without_quant_conv(vae):
    vae.quant_conv = None
    extractor = Extractor.from_vae(vae, N_BITS, PILOTS)
    with torch.no_grad():
        torch.testing.assert_close(extractor.encode(images()), encode_canvas(vae, images()))


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
        extractor.whiten(logits)
        white = extractor(images(200))
    torch.testing.assert_close(white.mean(0), torch.zeros(N_BITS), atol=1e-3, rtol=0)
    torch.testing.assert_close(torch.cov(white.T), torch.eye(N_BITS), atol=0.01, rtol=0)


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
