"""The closed form of the code: known optima, exact inverses, and a real autoencoder."""

import pytest
import torch

from privgen.diffusion.latents import encode
from privgen.training.watermark.linear_start import mixed
from privgen.watermark.write.linear_code import (
    Response,
    low_frequencies,
    measure_response,
    nearest_covariance,
    solve_code,
    stationary_covariance,
    zero_forcing,
)
from privgen.watermark.write.residual import decoded_difference


D = 24


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def positive(seed):
    root = torch.randn(D, 2 * D, generator=generator(seed), dtype=torch.float64)
    return root @ root.T / (2 * D)


def test_uncorrelated_content_leaves_the_quietest_directions():
    noise = torch.linspace(1, 10, D)
    code = solve_code(torch.diag(noise**2), Response(torch.eye(D), torch.eye(D)), 4, ridge=0)
    energy = code.patterns.square().sum(0)
    torch.testing.assert_close(energy[:4], torch.ones(4))
    torch.testing.assert_close(energy[4:], torch.zeros(D - 4), atol=1e-6, rtol=0)
    torch.testing.assert_close(code.noise.sort().values, noise[:4])


def test_no_other_pattern_is_read_better():
    covariance, energy, reading = positive(1), positive(2), positive(3)
    code = solve_code(covariance, Response(energy, reading), 1, ridge=0)
    best = 1 / float(code.noise[0])

    def snr(pattern):
        seen = reading @ pattern
        return float((seen @ torch.linalg.solve(covariance, seen) / (pattern @ energy @ pattern)).sqrt())

    found = code.patterns[0].double()
    assert snr(found) == pytest.approx(best, rel=1e-4)
    for seed in range(50):
        nearby = found + 0.3 * found.norm() * torch.nn.functional.normalize(
            torch.randn(D, generator=generator(seed), dtype=torch.float64), dim=0
        )
        assert snr(nearby) <= best * (1 + 1e-6)


def test_filters_read_their_own_pattern_alone():
    covariance, response = positive(1), Response(positive(2), positive(3))
    code = solve_code(covariance, response, 5, ridge=0.001)
    seen = code.filters.double() @ response.reading @ code.patterns.double().T
    torch.testing.assert_close(seen, torch.eye(5, dtype=torch.float64), atol=1e-4, rtol=0)
    pixels = code.patterns.double() @ response.energy @ code.patterns.double().T
    assert pixels.diagonal().tolist() == pytest.approx([1.0] * 5, rel=0.05)  # up to the ridge


def test_patterns_within_a_span():
    covariance, response = positive(1), Response(positive(2), positive(3))
    span = torch.randn(D, 7, generator=generator(4), dtype=torch.float64)
    code = solve_code(covariance, response, 5, span=span, ridge=0)
    basis = torch.linalg.qr(span).Q
    torch.testing.assert_close(code.patterns.double() @ basis @ basis.T, code.patterns.double(), atol=1e-5, rtol=0)
    free = solve_code(covariance, response, 5, ridge=0)
    assert code.noise.min() > free.noise.min()


def test_too_many_patterns():
    with pytest.raises(ValueError, match="at most 3 patterns, got 4"):
        solve_code(positive(1), Response(positive(2), positive(3)), 4, span=torch.eye(D)[:, :3])


def test_low_frequencies():
    basis = low_frequencies(2, 8, 8, 2)
    assert basis.shape == (128, 2 * 25)
    torch.testing.assert_close(basis.T @ basis, torch.eye(50, dtype=torch.float64))
    place = (torch.arange(8, dtype=torch.float64) + 0.5) / 8

    def kept(cycles_down, cycles_across):
        phase = cycles_down * place[:, None] + cycles_across * place + 0.1
        wave = torch.cat([(2 * torch.pi * phase).cos().flatten(), torch.zeros(64, dtype=torch.float64)])
        return float((basis.T @ wave).square().sum() / wave.square().sum())

    assert kept(2, -1) == pytest.approx(1)
    assert kept(0, 2) == pytest.approx(1)
    assert kept(3, 1) == pytest.approx(0, abs=1e-9)
    assert low_frequencies(2, 4, 6, 5).shape == (48, 48)


def test_mixed_bits_are_read_equally_well():
    noise = torch.linspace(1, 10, D)
    response = Response(torch.eye(D), torch.eye(D))
    code = solve_code(torch.diag(noise**2), response, 8, ridge=0)
    patterns, filters = mixed(code, torch.diag(noise**2), response, 6, 0.0)
    torch.testing.assert_close(patterns @ patterns.T, torch.eye(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(filters[:6] @ patterns.T, torch.eye(6), atol=1e-4, rtol=0)
    heard = (filters @ torch.diag(noise**2) @ filters.T).diagonal().sqrt()
    best = code.noise.sort().values[:6]
    assert heard[:6].max() / heard[:6].min() < best.max() / best.min()
    # Pilots are as loud as the bits' noise.
    torch.testing.assert_close(heard[6:], heard[:6].square().mean().sqrt().expand(2))
    assert (filters[6:] @ patterns.T).abs().max() < 1e-4


def test_zero_forcing_is_the_quietest_inverse():
    covariance, signals = positive(5), torch.randn(D, 3, generator=generator(6), dtype=torch.float64)
    filters = zero_forcing(covariance, signals)
    torch.testing.assert_close(filters @ signals, torch.eye(3, dtype=torch.float64))
    other = torch.linalg.pinv(signals)  # another left inverse
    quiet, loud = ((f @ covariance @ f.T).diagonal() for f in (filters, other))
    assert (quiet <= loud + 1e-9).all()


def test_few_images_give_a_covariance_all_the_same():
    few = torch.randn(3, 2, 4, 4, generator=generator()).cumsum(2).cumsum(3)
    estimate = stationary_covariance(few)
    assert torch.linalg.eigvalsh(estimate)[0] < -0.1
    found = nearest_covariance(estimate)
    assert torch.linalg.eigvalsh(found)[0] > -1e-4
    torch.testing.assert_close(nearest_covariance(found), found, atol=1e-4, rtol=0)
    torch.testing.assert_close(nearest_covariance(positive(1)), positive(1))


def test_stationary_covariance_of_white_and_of_smooth_noise():
    white = torch.randn(4000, 2, 4, 4, generator=generator(7))
    torch.testing.assert_close(stationary_covariance(white), torch.eye(32), atol=0.05, rtol=0)
    # Each value and its right-hand neighbour share half of their energy.
    wide = torch.randn(4000, 1, 4, 5, generator=generator(8))
    smooth = (wide[..., 1:] + wide[..., :-1]) / 2**0.5
    found = stationary_covariance(smooth).view(4, 4, 4, 4)
    assert float(found[1, 2, 1, 3]) == pytest.approx(0.5, abs=0.03)
    assert float(found[1, 0, 1, 2]) == pytest.approx(0.0, abs=0.03)
    assert float(found[0, 2, 1, 2]) == pytest.approx(0.0, abs=0.03)


def test_response_foretells_what_a_pattern_does(tiny):
    vae = tiny.tiny_pipeline().vae
    canvas = torch.rand(1, 3, 8, 8, generator=generator(9))
    with torch.no_grad():
        response = measure_response(vae, canvas, step=0.003)
        z = encode(vae, canvas)
        pattern = 0.001 * torch.randn(z.shape, generator=generator(10))
        change = decoded_difference(vae, z, z + pattern)
        seen = encode(vae, canvas + change) - z
    flat = pattern.flatten()
    assert float(change.square().sum()) == pytest.approx(float(flat @ response.energy @ flat), rel=0.15)
    foretold = response.reading @ flat
    assert torch.nn.functional.cosine_similarity(foretold, seen.flatten(), dim=0) > 0.99
