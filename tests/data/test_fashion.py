import gzip

import numpy as np
import pytest

from privgen.data.fashion import load_fashion, read_idx
from privgen.errors import PrivgenError


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    return head + array.astype(np.uint8).tobytes()


@pytest.fixture
def folder(tmp_path):
    images = np.arange(3 * 28 * 28).reshape(3, 28, 28) % 256
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(images)))
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(np.array([3, 0, 9])))
    return tmp_path


def test_reads_plain_and_compressed_files(folder):
    train = load_fashion("train", folder)
    assert train.images.shape == (3, 1, 28, 28)
    assert train.images.flatten()[:300].tolist() == [i % 256 for i in range(300)]
    assert train.labels.tolist() == [3, 0, 9]


def test_missing_files_say_what_to_do(folder):
    with pytest.raises(PrivgenError, match=r"t10k-images-idx3-ubyte is missing.*dataset-fashion-mnist.*--fashion"):
        load_fashion("test", folder)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is not an idx file"),
        (b"\0\0\x0d\x01\0\0\0\x01\0\0\0\0", "is not an idx file"),
        (idx(np.zeros(9))[:-1], "is cut short"),
        (idx(np.zeros((2, 2))), "has 2 dimensions instead of 1"),
        (idx(np.array([3, 0])), "are not Fashion-MNIST"),
        (idx(np.array([3, 0, 10])), "are not Fashion-MNIST"),
    ],
)
def test_bad_files(folder, data, message):
    (folder / "train-labels-idx1-ubyte").write_bytes(data)
    with pytest.raises(PrivgenError, match=message):
        load_fashion("train", folder)


def test_broken_compression(tmp_path):
    (tmp_path / "x.gz").write_bytes(gzip.compress(b"\0\0\x08\x01")[:-6])
    with pytest.raises(PrivgenError, match="cannot be read"):
        read_idx(tmp_path / "x.gz")


def test_unknown_part(tmp_path):
    with pytest.raises(ValueError, match="one of train, test, got 'all'"):
        load_fashion("all", tmp_path)
