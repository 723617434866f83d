"""Conversions are exact inverses in float64, up to rounding: 1e-9 of values of order one."""

from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from privgen.diffusion.parameterisation import (
    PREDICTIONS,
    NoiseLevel,
    add_noise,
    predict_noise,
    predict_original,
    prediction_target,
)


CLOSE = {"atol": 1e-9, "rtol": 1e-9}
values = st.lists(st.floats(-4, 4), min_size=6, max_size=6)
fractions = st.floats(0.001, 0.999)


def tensor(numbers):
    return torch.tensor(numbers, dtype=torch.float64).view(2, 3)


def level_for(prediction, fraction, scale=1.0):
    if prediction == "flow_prediction":
        return NoiseLevel(1 - fraction, fraction, scale)
    found = NoiseLevel.from_alpha_bar(fraction)
    return NoiseLevel(found.alpha, found.sigma, scale)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@given(original=values, noise=values, fraction=fractions, scale=st.floats(0.05, 1))
def test_the_target_gives_back_what_the_sample_is_made_of(prediction, original, noise, fraction, scale):
    original, noise, level = tensor(original), tensor(noise), level_for(prediction, fraction, scale)
    sample = add_noise(original, noise, level)
    target = prediction_target(original, noise, level, prediction)
    torch.testing.assert_close(predict_original(target, sample, level, prediction), original, **CLOSE)
    torch.testing.assert_close(predict_noise(target, sample, level, prediction), noise, **CLOSE)


# Velocity and flow belong to different noise levels, so one is never converted to the other.
PAIRS = [pair for pair in product(PREDICTIONS, repeat=2) if {*pair} != {"v_prediction", "flow_prediction"}]


@pytest.mark.parametrize(("prediction", "other"), PAIRS)
@given(output=values, sample=values, fraction=fractions)
def test_another_prediction_and_back_is_the_identity(prediction, other, output, sample, fraction):
    output, sample = tensor(output), tensor(sample)
    level = level_for("flow_prediction" if "flow_prediction" in (prediction, other) else prediction, fraction)
    there = converted(output, sample, level, prediction, other)
    torch.testing.assert_close(converted(there, sample, level, other, prediction), output, **CLOSE)


def converted(output, sample, level, source, target):
    original, noise = (f(output, sample, level, source) for f in (predict_original, predict_noise))
    return prediction_target(original, noise, level, target)


@pytest.mark.parametrize(
    ("prediction", "expected"), [("epsilon", 3.0), ("sample", 2.0), ("v_prediction", 0.6 * 3 - 0.8 * 2)]
)
def test_targets_by_hand(prediction, expected):
    level = NoiseLevel(0.6, 0.8)
    found = prediction_target(torch.tensor(2.0), torch.tensor(3.0), level, prediction)
    assert float(found) == pytest.approx(expected)


def test_a_sample_by_hand():
    # Euler's schedulers hold x_0 + 2 eps, and divide it by sqrt(5) for the network.
    level = NoiseLevel(5**-0.5, 2 * 5**-0.5, 5**-0.5)
    assert float(add_noise(torch.tensor(1.5), torch.tensor(0.25), level)) == pytest.approx(2.0)


def test_a_level_for_each_sample():
    level = NoiseLevel.from_alpha_bar(torch.tensor([[0.36], [0.64]]))
    sample = add_noise(torch.ones(2, 3), torch.zeros(2, 3), level)
    torch.testing.assert_close(sample, torch.tensor([[0.6], [0.8]]).expand(2, 3))
