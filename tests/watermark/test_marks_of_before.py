"""Marks that an earlier version made are made and read in the same way: `tests/fixtures/marks` holds its files.

photo.png is a photograph of 200 x 134 pixels; photo_latent.png, photo_token.png and photo_robust.png are marked with
carol.key (robust: three steps); generated_*.png show "a rocket on a blue background", seed 5; turned.png and
cropped.png come from photo_latent.png. detected.json is what that version read from them, with the search.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from privgen import Key, Watermark, load_pipeline


PROMPT = "a rocket on a blue background"
CALL = {"num_inference_steps": 25, "guidance_scale": 3.0}


@pytest.fixture(scope="module")
def marks(root):
    return root / "tests" / "fixtures" / "marks"


@pytest.fixture(scope="module")
def key(marks):
    return Key.load(marks / "carol.key")


@pytest.fixture(scope="module")
def mark():
    return Watermark.from_pretrained("mini")


def assert_same(image, path):
    """Processors differ: single levels in a thousandth of the values may."""
    difference = np.abs(np.asarray(image).astype(int) - np.asarray(Image.open(path)).astype(int))
    assert difference.max() <= 1
    assert (difference > 0).mean() <= 1e-3


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("latent", {"carrier": "latent"}),
        ("token", {"carrier": "token"}),
        ("robust", {"carrier": "latent", "robust_steps": 3}),
    ],
)
def test_photographs(marks, key, mark, name, options):
    assert_same(mark.embed(marks / "photo.png", key, **options), marks / f"photo_{name}.png")


@pytest.mark.parametrize("carrier", ["latent", "token"])
def test_generated_images(marks, key, mark, carrier):
    pipe = load_pipeline("mini")
    pipe.set_progress_bar_config(disable=True)
    with mark.on(pipe, key, carrier=carrier):
        marked = pipe(PROMPT, generator=torch.Generator().manual_seed(5), **CALL).images[0]
    assert_same(marked, marks / f"generated_{carrier}.png")
    plain = pipe(PROMPT, generator=torch.Generator().manual_seed(5), **CALL).images[0]
    assert_same(plain, marks / "generated_plain.png")


def test_readings(marks, key, mark):
    expected = json.loads((marks / "detected.json").read_text())
    images = [marks / name for name in expected]
    found = mark.detect(images, key, search=True, carrier="latent")
    for (name, before), now in zip(expected.items(), found, strict=True):
        assert abs(now.best.matches - before["matches"]) <= 1, name
        assert now.p_value == pytest.approx(before["p_value"], rel=0.2), name
        assert now.detected == (before["p_value"] <= 1e-6), name
    for (name, before), now in zip(expected.items(), mark.detect(images, key, search=True), strict=True):
        assert now.detected == (before["p_value"] <= 5e-7), name  # tiles are looked for too, and share the rate
