import pytest
import torch

from privgen.data.scenes import PREVIEW_SEED, draw_scene
from privgen.watermark.key import Key, Secret
from privgen.watermark.objects.write import ObjectMark, mark_objects


def numbered_key(number, name=None):
    return Key(name or f"key{number}", Secret(number.to_bytes(32, "big")))


@pytest.fixture(scope="session")
def key_of():
    """Makes the key of a number, the same in every run."""
    return numbered_key


@pytest.fixture(scope="session")
def owners():
    return numbered_key(1, "alice"), numbered_key(2, "bob")


@pytest.fixture(scope="session")
def scene():
    """A scene of two objects: (3, 128, 128), and two masks (128, 128)."""
    drawn = draw_scene(PREVIEW_SEED + 1, count=2)
    return torch.from_numpy(drawn.pixels), [torch.from_numpy(mask) for mask in drawn.masks]


@pytest.fixture(scope="session")
def marks(scene, owners):
    return [ObjectMark(f"object {i}", *pair) for i, pair in enumerate(zip(owners, scene[1], strict=True))]


@pytest.fixture(scope="session")
def marked(scene, marks):
    """The scene, its objects marked at 31 dB and rounded to 8 bits."""
    return mark_objects(scene[0], marks, psnr=31.0, levels=255)
