import importlib.util

import pytest
from PIL import Image


@pytest.fixture
def example(root):
    """Loads a script of examples/ by its name."""

    def load(name):
        spec = importlib.util.spec_from_file_location(name, root / "examples" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


def test_score_picture(example, tmp_path):
    shares = example("score_picture").main(steps=150, samples=200, out=tmp_path / "score.png")
    true, learned, amplified = shares.values()
    # Of the data themselves, 1.1 % lie beyond 3 standard deviations; a network of 150 steps is far from them.
    assert true < 0.05 < learned
    assert amplified < learned
    assert Image.open(tmp_path / "score.png").size[0] > 800


def test_trajectory_shift(example, tmp_path):
    results = example("trajectory_shift").main(training=500, points=100, out=tmp_path / "shift.png")
    # Many steps bring shifted points back to the spiral; few do not. The place on the spiral is lost in both cases.
    assert results[50, 0.5].off < results[4, 0.5].off
    for steps in (4, 50):
        assert results[steps, 2.0].error > results[steps, 0.25].error
    assert Image.open(tmp_path / "shift.png").size[0] > 800


def test_demo(example, tmp_path):
    found = example("demo").main(tmp_path / "demo")
    assert [detection.detected for detection in found] == [False] * 4 + [True] * 4
    assert len(list((tmp_path / "demo").glob("*, marked.png"))) == 4
    with Image.open(tmp_path / "demo" / "demo.png") as page:
        assert page.width > 1000


def test_two_owners(example, tmp_path):
    found = example("two_owners").main(tmp_path / "owners")
    assert {region.key for region in found.regions} == {"alice", "bob"}
    with Image.open(tmp_path / "owners" / "two_owners.png") as page:
        assert page.width > 1000


def test_the_picture_of_the_readme_is_small(root):
    assert 0 < (root / "docs" / "images" / "demo.png").stat().st_size < 300_000
