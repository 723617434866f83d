"""``privgen watermark embed --object`` and ``detect --locate``."""

import json

import numpy as np
import pytest
from PIL import Image

from privgen.data.scenes import PREVIEW_SEED, draw_scene


@pytest.fixture(autouse=True)
def folder(workshop):
    scene = draw_scene(PREVIEW_SEED + 1, count=2)
    planes = {"scene": scene.pixels.transpose(1, 2, 0), "cat": scene.masks[0], "dog": scene.masks[1]}
    for name, plane in planes.items():
        Image.fromarray((plane * 255).round().astype(np.uint8)).save(workshop / f"{name}.png")
    return workshop


OBJECTS = ("--object", "cat=alice", "--mask", "cat=cat.png", "--object", "dog=bob", "--mask", "dog=dog.png")


def test_two_owners_in_one_image(cli, folder):
    result = cli("watermark", "embed", "scene.png", *OBJECTS, "-o", "marked", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert [(item["name"], item["key"]) for item in record["objects"]] == [("cat", "alice"), ("dog", "bob")]
    assert "--locate --key alice --key bob" in result.stderr
    words = ("watermark", "detect", "marked/scene.png", "--key", "alice", "--key", "bob", "--carrier", "tile")
    result = cli(*words, "--locate", "--save-overlay", "owners", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert {region["key"] for region in record["regions"]} == {"alice", "bob"}
    left = {region["key"]: region["box"][0] for region in record["regions"]}
    assert left["alice"] < 0.3 < 0.5 < left["bob"]
    with Image.open(folder / "owners" / "scene.png") as picture:
        assert min(picture.size) >= 384
    result = cli(*words, "--locate")
    assert result.stdout.startswith("marked/scene.png: alice owns ")
    assert "; bob owns " in result.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--object", "cat=alice"], "no mask for cat"),
        (["--object", "cat=alice", "--mask", "cat=cat.png", "--mask", "dog=dog.png"], "mask for dog, but no key"),
        (["--object", "alice"], "has no name"),
        (["--object", "cat=alice", "--object", "cat=bob"], "names cat twice"),
        (["--mask", "cat=cat.png"], "--key, or --object and --mask"),
        (["--object", "cat=alice", "--mask", "cat=cat.png", "--carrier", "tile+latent"], "tile, latent or token"),
        ([], "--key, or --object and --mask"),
    ],
)
def test_wrong_calls(cli, words, message):
    result = cli("watermark", "embed", "scene.png", *words, "-o", "marked")
    assert result.exit_code == 2
    assert message in result.stderr


def test_an_overlay_needs_locate(cli):
    result = cli("watermark", "detect", "scene.png", "--key", "alice", "--save-overlay", "owners")
    assert result.exit_code == 2
    assert "needs --locate" in result.stderr
