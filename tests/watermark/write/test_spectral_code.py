"""The code of waves: patterns of one pixel energy, filters that read their own pattern, noise as it is predicted."""

import pytest
import torch
from torch.nn import functional as F

from privgen.watermark.write.spectral_code import (
    LENGTHS,
    WaveResponse,
    content_spectrum,
    measure_waves,
    solve_spectral_code,
)


CHANNELS, SIDE, COUNT = 3, 16, 24
PATCH = 4


@pytest.fixture(scope="module")
def mixing():
    """From latents to the colours of a patch; well conditioned."""
    generator = torch.Generator().manual_seed(0)
    return torch.linalg.qr(torch.randn(CHANNELS, CHANNELS, generator=generator)).Q @ torch.diag(
        torch.tensor([0.02, 0.05, 0.1])
    )


class Patches:
    """An autoencoder that is linear and treats all places alike: every latent is the colour of a patch, mixed.

    What it encodes it scales by `loss`, as if it lost some of it.
    """

    def __init__(self, mixing, loss=0.8):
        self.mixing, self.loss = mixing, loss
        self.config = type("Config", (), {"scaling_factor": 1.0, "shift_factor": None})()
        self.dtype, self.device = torch.float32, torch.device("cpu")

    def decode(self, z, return_dict=False):
        # Pixels are in [-1, 1] here, so they change by twice as much.
        colours = 2 * torch.einsum("oc,bchw->bohw", self.mixing, z)
        return (F.interpolate(colours, scale_factor=PATCH, mode="nearest"),)

    def encode(self, x):
        z = torch.einsum("oc,bchw->bohw", torch.linalg.inv(self.mixing), F.avg_pool2d(x / 2, PATCH))
        latents = self.loss * z
        return type("Output", (), {"latents": latents})()


@pytest.fixture(scope="module")
def response(mixing):
    canvases = torch.rand(2, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(1))
    return measure_waves(Patches(mixing), canvases)


def test_waves_of_a_linear_autoencoder_are_measured_exactly(response, mixing):
    energy = (PATCH**2 * mixing.T @ mixing).double()
    for found in response.energy:
        torch.testing.assert_close(found, energy, rtol=1e-3, atol=1e-5)
    for found in response.reading:
        torch.testing.assert_close(found, 0.8 * torch.eye(CHANNELS, dtype=torch.float64), rtol=0, atol=2e-3)


def latents(count, seed=2):
    """Stationary content that is smooth in all directions alike, with channels that go together."""
    white = torch.randn(count, CHANNELS, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))
    radius = torch.hypot(torch.fft.fftfreq(SIDE)[:, None], torch.fft.rfftfreq(SIDE)[None])
    smooth = torch.fft.irfft2(torch.fft.rfft2(white) / (0.05 + radius), s=(SIDE, SIDE))
    return torch.einsum("oc,bchw->bohw", torch.tensor([[1.0, 0.5, 0], [0, 1, 0.3], [0.2, 0, 1]]), smooth)


@pytest.fixture(scope="module")
def code(response):
    return solve_spectral_code(content_spectrum(latents(400)), response, SIDE, COUNT)


def test_patterns_have_one_pixel_energy_and_do_not_overlap(code, mixing):
    pixels = F.interpolate(torch.einsum("oc,bchw->bohw", mixing, code.patterns), scale_factor=PATCH).flatten(1)
    # The ridge counts a little as energy.
    torch.testing.assert_close(pixels @ pixels.T, torch.eye(COUNT), rtol=0, atol=0.1)


def test_filters_read_their_own_pattern_only(code):
    read = 0.8 * code.filters.flatten(1) @ code.patterns.flatten(1).T
    torch.testing.assert_close(read, torch.eye(COUNT), rtol=0, atol=0.01)


def test_the_noise_is_as_predicted_on_other_content(code):
    read = latents(1000, seed=3).flatten(1) @ code.filters.flatten(1).T
    torch.testing.assert_close(read.std(0), code.noise, rtol=0.15, atol=0)


def test_the_best_patterns_come_first_and_beat_random_ones(code, response):
    assert (code.noise.diff() >= -1e-6).all()
    last = solve_spectral_code(content_spectrum(latents(400)), response, SIDE, CHANNELS * 40)
    assert float(code.noise.max()) < float(last.noise.median())


def test_responses_between_lengths_are_between(mixing):
    ramp = torch.arange(float(len(LENGTHS)))[:, None, None].double() * torch.eye(2, dtype=torch.float64)
    energy, reading = WaveResponse(ramp, 2 * ramp).at(torch.tensor([(LENGTHS[1] + LENGTHS[2]) / 2, 0.7]).double())
    assert energy[:, 0, 0].tolist() == pytest.approx([1.5, len(LENGTHS) - 1])
    assert reading[:, 1, 1].tolist() == pytest.approx([3.0, 2 * (len(LENGTHS) - 1)])


def test_too_many_patterns(response):
    with pytest.raises(ValueError, match="expected at most"):
        solve_spectral_code(content_spectrum(latents(50)), response, SIDE, 10_000)
