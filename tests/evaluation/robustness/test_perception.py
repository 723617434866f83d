"""ST-LPIPS and FD-MNv2 in records of robustness, with weights where they are installed, without where not."""

import math

import pytest
import torch

from privgen.evaluation.robustness.log import Row
from privgen.evaluation.robustness.perception import FEWEST, decode_features, encode_features, perceive, perception
from privgen.metrics.features import frechet_distance
from privgen.metrics.mobilenet import mobilenet_installed
from privgen.metrics.st_lpips import st_lpips, st_lpips_installed


def rows(attack, features, distances):
    texts = [None if features is None else encode_features(row) for row in features] if features is not None else None
    return [
        Row("latent", attack, i, [1], None, 30.0, 0.9, st_lpips=distance, features=texts and texts[i])
        for i, distance in enumerate(distances)
    ]


@pytest.fixture(scope="module")
def features():
    return 3 * torch.rand(FEWEST, 1280, generator=torch.Generator().manual_seed(0))


def test_features_are_kept_in_half_precision(features):
    read = decode_features(encode_features(features[0]))
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, features[0], atol=2e-3, rtol=0)


def test_figures_of_an_attack(features):
    moved = features * 1.1
    clean, hit = rows("clean", features, [0.0] * FEWEST), rows("blur_1", moved, [0.25, 0.75] * (FEWEST // 2))
    found = perception(hit, clean)
    assert found["st_lpips"].value == pytest.approx(0.5)
    assert found["st_lpips"].n == FEWEST
    assert found["fd_mnv2"].value == pytest.approx(frechet_distance(features, moved), rel=0.01)
    assert found["fd_mnv2"].n == FEWEST
    assert math.isnan(found["fd_mnv2"].low)
    assert perception(clean, clean)["fd_mnv2"].value < 1e-6
    assert perception(clean, ()).keys() == {"st_lpips"}


def test_too_few_images_have_no_distance_of_sets(features):
    clean, hit = rows("clean", features, [0.1] * FEWEST), rows("blur_1", features, [0.1] * FEWEST)
    assert perception(hit[:-1], clean).keys() == {"st_lpips"}
    assert perception(hit, clean[1:]).keys() == {"st_lpips"}


def test_rows_without_figures_are_passed_over():
    """As logs of runs before the packages were installed have them."""
    assert perception(rows("blur_1", None, [None, None]), ()) == {}
    assert perception(rows("blur_1", None, [None, 0.5]), ())["st_lpips"].n == 1


def test_what_is_installed_is_noted():
    generator = torch.Generator().manual_seed(0)
    images, before = torch.rand(2, 2, 3, 32, 40, generator=generator)
    found = perceive(images, before, with_features=True)
    for i, entry in enumerate(found):
        assert (entry["features"] is None) != mobilenet_installed()
        assert (entry["st_lpips"] is None) != st_lpips_installed()
        if st_lpips_installed():
            assert entry["st_lpips"] == pytest.approx(float(st_lpips(images, before)[i]), rel=1e-5)
    assert perceive(images, before, with_features=False)[0]["features"] is None
    assert perceive(images[..., :16], before[..., :16], with_features=False)[0]["st_lpips"] is None, "too small for it"
