"""Read Fashion-MNIST (arXiv 1708.07747, MIT licence) from its original files, which you install yourself."""

import errno
import gzip
import os
import zlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from privgen.errors import PrivgenError
from privgen.io.files import check_regular


FOLDER = Path("/usr/share/datasets/fashion-mnist")
"""Folder of the files in Debian's package dataset-fashion-mnist."""
CLASSES = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SIDE = 28
_LARGEST = 2**26  # bytes of a file, of which the largest has 47 million

_FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
_REMEDY = (
    "install Debian's package dataset-fashion-mnist, or name a folder with the four idx files of "
    "https://github.com/zalandoresearch/fashion-mnist by --fashion"
)


@dataclass(frozen=True)
class Fashion:
    """A part of the data set.

    Attributes:
        images: (N, 1, 28, 28), uint8.
        labels: (N,), int64, indices in `CLASSES`.
    """

    images: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)


def load_fashion(part: str, folder: str | os.PathLike[str] | None = None) -> Fashion:
    """Read a part of Fashion-MNIST.

    Args:
        part: "train" (60,000 images) or "test" (10,000).
        folder: of the original files, compressed (.gz) or not; None is `FOLDER`.

    Raises:
        ValueError: there is no such part.
        PrivgenError: a file is missing, cannot be read, or holds something else.
    """
    if part not in _FILES:
        raise ValueError(f"expected part to be one of {', '.join(_FILES)}, got {part!r}")
    place = FOLDER if folder is None else Path(folder)
    names = _FILES[part]
    images, labels = _read(place, names[0], 3), _read(place, names[1], 1)
    if images.shape[1:] != (SIDE, SIDE) or len(images) != len(labels) or len(labels) == 0 or labels.max() > 9:
        raise PrivgenError(f"{names[0]} and {names[1]} in {place} are not Fashion-MNIST; {_REMEDY}.")
    return Fashion(torch.from_numpy(images)[:, None], torch.from_numpy(labels).long())


def read_idx(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Read an array of bytes in the idx format.

    The format is two zero bytes, 8 (for bytes), the number of dimensions, their sizes as big-endian int32, and the
    data.

    Args:
        path: the file; it is decompressed if its name ends in .gz.

    Raises:
        PrivgenError: the file cannot be read, or is cut short.
    """
    file = Path(path)
    try:
        check_regular(file)
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as stream:
            data = stream.read(_LARGEST + 1)
        if len(data) > _LARGEST:
            raise OSError(errno.EFBIG, f"it has more than {_LARGEST:,} bytes")
    except (OSError, EOFError, zlib.error) as error:
        raise PrivgenError(f"{file} cannot be read ({error}); {_REMEDY}.") from error
    rank = data[3] if len(data) >= 4 and data[:3] == b"\0\0\x08" else 0
    sizes = np.frombuffer(data[4 : 4 + 4 * rank], ">i4").tolist() if len(data) >= 4 + 4 * rank else []
    body = data[4 + 4 * rank :]
    if not rank or not sizes or len(body) != np.prod(sizes):
        raise PrivgenError(f"{file} is not an idx file of bytes, or is cut short; {_REMEDY}.")
    return np.frombuffer(body, np.uint8).reshape(sizes).copy()


def _read(folder: Path, name: str, rank: int) -> NDArray[np.uint8]:
    path = next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise PrivgenError(f"There is no Fashion-MNIST in {folder} ({name} is missing); {_REMEDY}.")
    array = read_idx(path)
    if array.ndim != rank:
        raise PrivgenError(f"{path} has {array.ndim} dimensions instead of {rank}; {_REMEDY}.")
    return array
