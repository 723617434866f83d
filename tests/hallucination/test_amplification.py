import math

import pytest
import torch

from privgen.diffusion.parameterisation import PREDICTIONS, NoiseLevel, predict_noise, predict_original
from privgen.hallucination.amplification import Amplification, amplify_score, amplify_tangent, uncertainty_gate


CLOSE = {"atol": 1e-10, "rtol": 1e-10}  # float64


def normal(generator, *shape):
    return torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_noise_grows_and_the_sample_stays(prediction, generator):
    output, x_t, factor = normal(generator, 4, 3), normal(generator, 4, 3), 0.5 + normal(generator, 4, 3).abs()
    level = NoiseLevel(0.3, 0.7) if prediction == "flow_prediction" else NoiseLevel(0.6, 0.8)
    amplified = amplify_score(output, x_t, level, prediction, factor)
    noise = predict_noise(amplified, x_t, level, prediction)
    torch.testing.assert_close(noise, factor * predict_noise(output, x_t, level, prediction), **CLOSE)
    original = predict_original(amplified, x_t, level, prediction)
    torch.testing.assert_close(level.alpha * original + level.sigma * noise, x_t, **CLOSE)


def test_half_precision_stays(generator):
    output, x_t = normal(generator, 2, 3).half(), normal(generator, 2, 3).half()
    for prediction in PREDICTIONS:
        assert amplify_score(output, x_t, NoiseLevel(0.6, 0.8), prediction, torch.tensor(1.5)).dtype == torch.float16
    assert amplify_tangent(x_t, output, 1.5).dtype == torch.float16


def test_the_radial_part_of_a_step_stays(generator):
    x, stepped = normal(generator, 5, 3, 4, 4), normal(generator, 5, 3, 4, 4)
    amplified = amplify_tangent(x, stepped, 1.7)
    before, after = ((x * (y - x)).flatten(1).sum(1) for y in (stepped, amplified))
    torch.testing.assert_close(before, after, **CLOSE)
    radial = (before / x.square().flatten(1).sum(1)).view(-1, 1, 1, 1) * x
    torch.testing.assert_close(amplified - x - radial, 1.7 * (stepped - x - radial), **CLOSE)
    # From zero, every step is tangential.
    torch.testing.assert_close(amplify_tangent(torch.zeros_like(x), stepped, 2.0), 2 * stepped, **CLOSE)


def test_the_gate_is_one_half_at_halfway():
    gate = uncertainty_gate(torch.tensor([0.0, 0.02, 0.06, 1e9]), 0.02)
    assert gate.tolist() == pytest.approx([0, 0.5, 0.75, 1])


def test_the_window_holds_both_ends():
    amplification = Amplification(1.3, window=(200, 600))
    assert [amplification.acts_at(t) for t in (199.5, 200, 400, 600, 600.5)] == [False, True, True, True, False]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"gate": "open"}, "expected gate to be one of constant, running_variance, learned, got 'open'"),
        ({"gamma": -1}, "expected gamma and eta of at least 0"),
        ({"gamma": math.nan}, "expected gamma and eta of at least 0"),
        ({"eta": -0.1}, "expected gamma and eta of at least 0"),
        ({"halfway": 0}, "halfway above 0"),
        ({"window": (500, 100)}, "expected window to be low <= high in 0..1000"),
        ({"window": (0, 1001)}, "expected window to be low <= high in 0..1000"),
        ({"memory": 1}, "expected memory of at least 2"),
    ],
)
def test_bad_settings(values, message):
    with pytest.raises(ValueError, match=message):
        Amplification(**values)
