import pytest

from privgen.io.images import load_image
from privgen.watermark.key import Key, Secret
from privgen.watermark.tile.pattern import pattern_of


def numbered_key(number, name="alice"):
    return Key(name, Secret(number.to_bytes(32, "big")))


@pytest.fixture(scope="session")
def key_of():
    """Makes the key of a number, the same in every run."""
    return numbered_key


@pytest.fixture(scope="session")
def alice():
    return pattern_of(numbered_key(1, "alice"))


@pytest.fixture(scope="session")
def bob():
    return pattern_of(numbered_key(2, "bob"))


@pytest.fixture(scope="session")
def photo(root):
    """Loads a packaged photograph, (3, H, W) in [0, 1]."""
    return lambda name: load_image(root / "privgen/data/photos/heldout" / f"{name}.jpg").pixels
