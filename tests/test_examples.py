import importlib.util

import pytest
from PIL import Image


@pytest.fixture
def score_picture(root):
    spec = importlib.util.spec_from_file_location("score_picture", root / "examples" / "score_picture.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_score_picture(score_picture, tmp_path):
    shares = score_picture.main(steps=150, samples=200, out=tmp_path / "score.png")
    true, learned, amplified = shares.values()
    # Of the data themselves, 1.1 % lie beyond 3 standard deviations; a network of 150 steps is far from them.
    assert true < 0.05 < learned
    assert amplified < learned
    assert Image.open(tmp_path / "score.png").size[0] > 800
