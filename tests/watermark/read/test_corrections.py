"""P-values stay valid whatever an image was searched with: at most a fraction `a` of them is `a` or less."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from privgen.hub import load_extra
from privgen.io.images import load_image
from privgen.io.residual import to_canvas
from privgen.models.family import Canvas
from privgen.watermark.read.bits import weigh_bits
from privgen.watermark.read.p_values import TESTS, match_keys, p_values_of
from privgen.watermark.read.search import SEARCHED, WHOLE, AlignedReader, places_of


LEVELS = (0.5, 0.2, 0.05, 0.01)


def assert_valid(p):
    """Whether P(p <= a) <= a, up to what so many draws can show (99.99 %, one level at a time)."""
    for level in LEVELS:
        below = int((np.asarray(p) <= level).sum())
        assert binomtest(below, len(p), level, alternative="greater").pvalue > 1e-4, (level, below / len(p))


@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**32 - 1),
    places=st.integers(1, 6),
    keys=st.integers(1, 4),
    alike=st.floats(0, 1),
    test=st.sampled_from(TESTS),
    correction=st.sampled_from(["bonferroni", "holm"]),
)
def test_the_best_of_places_and_keys(seed, places, keys, alike, test, correction):
    """Gaussian logits of several places of one image, more or less alike, and several keys."""
    rng, p = np.random.default_rng(seed), []
    for _ in range(400):
        logits = alike * rng.standard_normal((1, 48)) + (1 - alike) * rng.standard_normal((places, 48))
        messages = rng.integers(0, 2, (keys, 48))
        options = {"candidates": places * keys, "correction": correction, "test": test}
        p.append(min(found.p_adjusted for row in match_keys(logits, messages, **options) for found in row))
    assert_valid(p)


def test_the_whole_image_and_two_searches_share_the_rate():
    """As `AlignedReader` corrects: the image as it is, then two searches, here of 2 and 3 independent places.

    If no part left room for the others, 1.5 times as many p-values or more would be below a level.
    """
    rng, draws, p = np.random.default_rng(0), 2000, []
    messages = rng.integers(0, 2, (draws, 48))
    for factor, places in ((WHOLE, 1), (SEARCHED, 2), (SEARCHED, 3)):
        logits = rng.standard_normal((draws, places, 48))
        for place in range(places):
            weighed = weigh_bits(logits[:, place])
            values = [
                p_values_of(row[None], own[None], "weighted")[0, 0] for row, own in zip(weighed, messages, strict=True)
            ]
            p.append(factor * places * np.array(values))
    assert_valid(np.min(p, axis=0))


@pytest.mark.slow
def test_a_photograph_and_random_keys(photo_files):
    """The real reader on a real, unmarked image: the keys alone are random."""
    reader = AlignedReader(load_extra("extractor"), load_extra("aligner"))
    canvas = to_canvas([load_image(photo_files[5]).pixels], 128)
    messages = torch.randint(2, (2000, 48), generator=torch.Generator().manual_seed(0))
    found = reader(canvas, messages, fpr=1e-6)
    assert_valid(found.p[0])


@pytest.mark.parametrize(("turned", "poses"), [(False, 19 + 312), (True, 18 * 99)])
def test_poses_are_counted_sixteen_times(turned, poses):
    """On mini's canvas: 19 angles and 3^2 + 4^2 + 6^2 + 7^2 + 9^2 + 11^2 windows; 18 angles of 99 windows each."""
    assert places_of(Canvas(size=128, patch=8, channels=8), turned) == 16 * poses
