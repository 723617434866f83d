import importlib.util

import pytest


@pytest.fixture(scope="session")
def marked_model(tmp_path_factory, root, tiny):
    """A tiny model folder with an extractor and a latent mapper that work: see `tests/marked.py`."""
    spec = importlib.util.spec_from_file_location("marked", root / "tests" / "marked.py")
    marked = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(marked)
    photos = sorted((root / "privgen" / "data" / "photos" / "heldout").glob("*.jpg"))[:100]
    return marked.save_marked_model(tmp_path_factory.mktemp("models") / "tiny", tiny.tiny_pipeline(), photos)


@pytest.fixture(scope="session")
def photo_files(root):
    """Photographs that the extractor was not fitted to."""
    return sorted((root / "privgen" / "data" / "photos" / "heldout").glob("*.jpg"))[100:]
