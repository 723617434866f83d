"""Images marked in bulk get the pixels of the single call, each worker loads networks once, and stopped runs go on."""

import importlib.util
import os
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from privgen import Key, Watermark
from privgen.watermark.networks import Networks


@pytest.fixture(scope="module")
def script(root):
    def load(name):
        spec = importlib.util.spec_from_file_location(name, root / "examples" / "bulk" / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="module")
def photos(tmp_path_factory, photo_files):
    folder = tmp_path_factory.mktemp("photos")
    for number, source in enumerate(photo_files[:4]):
        with Image.open(source) as image:
            image = image.convert("RGB")
        image.thumbnail((96, 96))
        image.save(folder / f"{number}.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def readable(photos):
    return [str(path) for path in sorted(photos.glob("[0-9].png"))]


@pytest.fixture(scope="module")
def key():
    return Key.new("alice")


@pytest.fixture(scope="module")
def singly(photos, key):
    """The pixels of the single call for each photograph."""
    mark = Watermark.from_pretrained("mini")
    return [np.asarray(mark.embed(Image.open(path), key)) for path in readable(photos)]


@pytest.fixture
def loads(tmp_path, monkeypatch):
    """Counts how often each process loads each network; the count of a forked worker is written to a file."""
    log, original = tmp_path / "loads.txt", Networks._get

    def counted(self, name):
        known = name in self._loaded
        network = original(self, name)
        if not known:
            with log.open("a") as file:
                print(name, os.getpid(), file=file)
        return network

    monkeypatch.setattr(Networks, "_get", counted)
    return lambda: log.read_text().splitlines()


def assert_same(files, expected):
    assert len(files) == len(expected)
    for file, pixels in zip(files, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(file if isinstance(file, Image.Image) else Image.open(file)), pixels)


def test_dataloader(script, photos, key, singly, tmp_path, loads):
    mark_folder = script("mark_with_dataloader").mark_folder
    mark, out = Watermark.from_pretrained("mini"), tmp_path / "marked"
    said = mark_folder(photos, out, mark, key, workers=2)
    assert [line.partition(" was left out")[0] for line in said] == [
        *(str(out / f"{number}.png.png") for number in range(4)),
        str(photos / "broken.png"),
    ]
    assert_same(sorted(out.iterdir()), singly)
    assert len(loads()) == len(set(loads())), "a worker loaded a network for each image"

    (out / "2.png.png").unlink()
    assert mark_folder(photos, out, mark, key, workers=0)[0] == str(out / "2.png.png")
    assert_same(sorted(out.iterdir()), singly)


def test_datasets(script, photos, key, singly, tmp_path, loads, monkeypatch):
    datasets = pytest.importorskip("datasets")
    mark_shards = script("mark_dataset").mark_shards
    mark, out, files = Watermark.from_pretrained("mini"), tmp_path / "marked", readable(photos)

    def stopped(self, folder):
        """The second shard is half written when the machine goes down."""
        Path(folder).mkdir(parents=True)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        save = datasets.Dataset.save_to_disk
        patch.setattr(
            datasets.Dataset, "save_to_disk", lambda self, to: (stopped if any(out.glob("*")) else save)(self, to)
        )
        with pytest.raises(KeyboardInterrupt):
            mark_shards(files, out, mark, key, per_shard=2)
    [first, _] = sorted(out.iterdir())
    before = first.stat().st_mtime_ns

    assert_same(mark_shards(files, out, mark, key, per_shard=2)["image"], singly)
    assert len(loads()) == len(set(loads()))
    assert first.stat().st_mtime_ns == before
    assert len(list(out.iterdir())) == 2


@pytest.fixture
def two_workers(monkeypatch, root):
    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield
    ray.shutdown()


@pytest.mark.slow
@pytest.mark.usefixtures("two_workers")
def test_ray(script, photos, key, singly, tmp_path):
    mark_shards = script("mark_with_ray").mark_shards
    key_file, out, files = str(key.save(tmp_path / "alice.key")), tmp_path / "marked", readable(photos)
    files.append(str(photos / "broken.png"))

    done = mark_shards(files, out, key_file, per_shard=1, workers=2)
    assert len(done) == 5
    assert [line.partition(": ")[0] for row in done for line in row["left_out"]] == files[-1:]
    assert len({row["worker"] for row in done}) <= 2, "there are as many workers as shards: each loads networks again"
    assert_same(unpacked(out, tmp_path / "first"), singly)

    [third] = out.glob("00000002-*.tar")
    third.unlink()
    [again] = mark_shards(files, out, key_file, per_shard=1, workers=2)
    assert again["shard"] == str(third)
    assert_same(unpacked(out, tmp_path / "second"), singly)
    assert mark_shards(files, out, key_file, per_shard=1, workers=2) == []


def unpacked(shards, folder):
    for shard in sorted(shards.glob("*.tar")):
        with tarfile.open(shard) as tar:
            tar.extractall(folder / shard.stem, filter="data")
    return sorted(folder.rglob("*.png"))
