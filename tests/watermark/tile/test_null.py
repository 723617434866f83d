"""Without a mark: for a fixed image and random keys, correlations are standard normal, and p-values are valid."""

import pytest
import torch
from scipy import stats

from privgen.watermark.tile.p_values import corrected, normal_tail
from privgen.watermark.tile.pattern import count_below, pattern_of
from privgen.watermark.tile.poses import Poses
from privgen.watermark.tile.read import BANDS
from privgen.watermark.tile.search import detect_tiles
from privgen.watermark.tile.spectrum import sample, spectrum_of
from privgen.watermark.tile.wave import grid_of


@pytest.fixture(scope="module")
def patterns(key_of):
    return [pattern_of(key_of(number)) for number in range(1000, 1800)]


@pytest.fixture(scope="module")
def unmarked(photo):
    return photo("gcompris-monuments-operahouse")


@pytest.mark.parametrize("band", BANDS)
@pytest.mark.parametrize(("tile", "degrees"), [(60.0, 0.0), (75.0, 37.0)])
def test_correlations_of_random_keys_are_standard_normal(unmarked, patterns, tile, degrees, band):
    pose = Poses(torch.tensor([tile]), torch.tensor([degrees]), torch.ones(1), torch.tensor([0.01]))
    values = sample(spectrum_of(unmarked), pose, count_below(band))[0]
    templates = torch.stack([pattern.template[: len(values)] for pattern in patterns])
    correlation = grid_of(values * templates.conj(), 64) / values.abs().square().sum().sqrt()
    for row, column in [(0, 0), (13, 57), (40, 7)]:
        z = correlation[:, row, column].double().numpy()
        assert stats.kstest(z, "norm").pvalue > 1e-3
    # All shifts together: they are correlated, but each is N(0, 1), far into the tail too.
    assert float(correlation.square().mean()) == pytest.approx(1, abs=0.03)
    beyond = float((correlation > 3).double().mean())
    assert beyond == pytest.approx(normal_tail(3), rel=0.25)


def test_p_values_of_unmarked_images_are_rarely_small(unmarked, patterns):
    [matches] = detect_tiles([unmarked], patterns[:150], search=False, fpr=0.999)
    p = torch.tensor([match.p_value for match in matches])
    for level in (0.5, 0.1, 0.02):
        assert float((p <= level).double().mean()) <= level + 3 * (level * (1 - level) / 150) ** 0.5


def test_a_search_finds_nothing_in_an_unmarked_image(unmarked, patterns):
    [[match]] = detect_tiles([unmarked], patterns[:1])
    assert match.p_value > 0.01
    assert match.matches < 44


@pytest.mark.parametrize(
    ("z", "tries", "p"), [(0.0, 1, 0.5), (1.959964, 1, 0.025), (0.0, 5, 1.0), (8.0, 10**6, 6.22e-10)]
)
def test_p_values_are_those_of_the_normal_law_times_the_tries(z, tries, p):
    assert corrected(z, tries) == pytest.approx(p, rel=1e-2)
