import pytest
from PIL import Image

from privgen.watermark.key import Key


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    """A tiny text-to-image model as a folder."""
    path = tmp_path_factory.mktemp("model")
    tiny.tiny_pipeline().save_pretrained(path)
    return path


@pytest.fixture
def photos(tmp_path, photo_files):
    """A folder with two small photographs, a PNG and a JPEG file."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, file, size in zip(("a.png", "b.jpg"), photo_files, ((50, 41), (36, 60)), strict=False):
        with Image.open(file) as image:
            image.resize(size).save(folder / name)
    return folder


@pytest.fixture
def workshop(tmp_path, monkeypatch, photo_files):
    """The folder that commands run in: two photos, a file that is no image, and the keys alice and bob."""
    monkeypatch.setenv("PRIVGEN_KEYS", str(tmp_path / "keys"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, path in zip(("a.png", "b.png"), photo_files[3:], strict=False):
        with Image.open(path) as image:
            image.save(tmp_path / "photos" / name)
    (tmp_path / "bad.png").write_bytes(b"not an image")
    for name in ("alice", "bob"):
        Key.new(name).save(tmp_path / "keys" / f"{name}.key")
    return tmp_path


@pytest.fixture
def small_disk():
    """Inside the block, no file may become larger: ``with small_disk(50): ...``, in bytes."""
    from contextlib import contextmanager

    resource = pytest.importorskip("resource")

    @contextmanager
    def limited(size):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    return limited


@pytest.fixture
def sentences():
    """The errors that a command has printed."""
    return lambda result: [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
