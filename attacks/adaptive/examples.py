"""Images that an attacker has collected: marked with one key, or unmarked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

import torch
from torch import Tensor

from privgen.errors import PrivgenError
from privgen.io.files import iter_image_files
from privgen.io.fingerprints import tensor_fingerprint
from privgen.io.images import load_image
from privgen.io.pixels import resize


CANVAS = 128
"""Side in pixels to which collected images are squeezed; marks span the canvas, so they survive it."""


@dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """A collection of images, squeezed to squares.

    Args:
        images: (N, 3, S, S) in [0, 1], at least one.
        name: what stands for it in representations.

    Raises:
        ValueError: images of another shape, or none.
    """

    images: Tensor
    name: str = "tensor"

    def __post_init__(self) -> None:
        shape = tuple(self.images.shape)
        if len(shape) != 4 or 0 in shape or shape[1] != 3 or shape[2] != shape[3]:
            raise ValueError(f"expected examples of shape (N, 3, S, S), got {shape}")

    def __len__(self) -> int:
        return len(self.images)

    def __repr__(self) -> str:
        return f"{self.name}_{len(self)}_{self.digest}"

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that tell collections apart."""
        return tensor_fingerprint(self.images)[:8]

    @classmethod
    def of(cls, images: Iterable[Tensor], name: str = "tensor", size: int = CANVAS) -> Self:
        """A collection of images of any sizes.

        Args:
            images: each (3, H, W) in [0, 1]; a tensor (N, 3, H, W) is N of them.
            name: what stands for it in representations.
            size: side of the squares.

        Raises:
            ValueError: no image, or one of another shape.
        """
        squares = [resize(image[None], (size, size)).clamp(0, 1).cpu() for image in images]
        if not squares:
            raise ValueError("expected at least one example, got none")
        return cls(torch.cat(squares), name)

    @classmethod
    def read(cls, path: str | os.PathLike[str], size: int = CANVAS) -> Self:
        """The images in a folder, or one image file.

        Args:
            path: the folder or file.
            size: side of the squares.

        Raises:
            PrivgenError: there is no such folder, it holds no image, or one cannot be read.
        """
        if not Path(path).exists():
            raise PrivgenError(f"There is no folder {path}; name one that holds images.")
        files = iter_image_files([path])
        return cls.of((load_image(file).pixels for file in files), Path(path).name or "examples", size)


ExamplesLike: TypeAlias = Examples | Tensor | str | os.PathLike[str]
"""A collection, a batch (N, 3, H, W), a folder or a file."""


def as_examples(given: ExamplesLike | None) -> Examples | None:
    """A collection from whatever names or holds it; None stays None.

    Raises:
        PrivgenError: as `Examples.read` does.
        ValueError: as `Examples.of` does, or something that is none.
    """
    if given is None or isinstance(given, Examples):
        return given
    if isinstance(given, Tensor):
        return Examples.of(given)
    if isinstance(given, (str, os.PathLike)):
        return Examples.read(given)
    raise ValueError(f"expected examples as a folder or a tensor, got {given!r}")


def needed(examples: Examples | None, attack: str, which: str) -> Examples:
    """The collection, or an error that says how to give it.

    Raises:
        PrivgenError: there is none.
    """
    if examples is None:
        raise PrivgenError(f"{attack} needs {which} images: give a folder with --{which} ({which}= in Python).")
    return examples
