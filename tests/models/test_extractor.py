"""The extractor: what its encoder sees, how it weighs its codes, whitening, saving."""

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
    """Reads numbers as they stand in the first latents: code 0, its pilots, code 1, its pilots."""
    extractor = Extractor.from_vae(vae, N_BITS, PILOTS).eval()
    extractor.filters.weight.data.zero_()
    extractor.filters.bias.data.zero_()
    width = N_BITS + PILOTS
    extractor.filters.weight.data[torch.arange(2 * width), torch.arange(2 * width)] = 1.0
    return extractor


def images(n=2, size=SIZE):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(0))


def read(extractor, first, pilots_of_first, second, pilots_of_second):
    parts = ((first, N_BITS), (pilots_of_first, PILOTS), (second, N_BITS), (pilots_of_second, PILOTS))
    readings = torch.cat([torch.as_tensor(part, dtype=torch.float32).expand(n) for part, n in parts])
    extractor.features = lambda _: torch.nn.functional.pad(readings, (0, extractor.filters.in_features - 24))[None]
    return extractor(images(1))[0]


def test_its_features_are_the_scaled_latents(vae):
    extractor = Extractor.from_vae(vae, N_BITS, PILOTS)
    with torch.no_grad():
        torch.testing.assert_close(extractor.features(images()), encode_canvas(vae, images()).flatten(1))


def test_features_of_a_vae_without_quant_conv(vae):
    vae.quant_conv = None
    extractor = Extractor.from_vae(vae, N_BITS, PILOTS)
    with torch.no_grad():
        torch.testing.assert_close(extractor.features(images()), encode_canvas(vae, images()).flatten(1))


def test_other_sizes_are_resized(extractor):
    assert extractor(images(1, 50)).shape == (1, N_BITS)


def test_the_code_with_the_mark_is_read(extractor):
    message = torch.tensor([1.0, -1, 1, 1, -1, -1, 1, -1])
    other = 0.3 * message.roll(1)
    quiet = 0.3
    assert ((read(extractor, message, quiet, other, quiet) > 0) == (message > 0)).all()
    assert ((read(extractor, other, quiet, message, quiet) > 0) == (message > 0)).all()


def test_a_loud_code_is_not_trusted(extractor):
    message = torch.tensor([1.0, -1, 1, 1, -1, -1, 1, -1])
    loud = 2.0 * message.roll(1)
    assert ((read(extractor, message, 0.3, loud, 2.0) > 0) == (message > 0)).all()


def test_logits_are_log_likelihood_ratios(extractor):
    """One code silent: log p(y | 1) / p(y | 0) = 2 y / variance for Gaussian noise."""
    message, noise = torch.tensor([1.0, -1, 0.5, 1, -1, -1, 1, -0.5]), 0.5
    logits = read(extractor, message, noise, 0.0, 0.1)
    torch.testing.assert_close(logits, 2 * message / (noise**2 + LEAST_VARIANCE), rtol=1e-3, atol=1e-3)


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
