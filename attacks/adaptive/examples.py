"""Images that an attacker has collected: with the mark of one key, or without a mark."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Self, TypeAlias

import torch
from torch import Tensor

from privgen.errors import PrivgenError
from privgen.io.files import iter_image_files
from privgen.io.fingerprints import tensor_fingerprint
from privgen.io.images import load_image
from privgen.io.pixels import resize


LARGEST = 256
"""Largest side in pixels of the squares that images are resized to by default; larger ones cost time and memory."""


@dataclass(frozen=True, eq=False, repr=False)
class Examples:
    """A collection of images, resized to squares of one size.

    A mark spans the whole image, so it survives that. Collections are equal if their images and names are.

    Args:
        images: (N, 3, S, S) in [0, 1], at least one.
        name: stands for the collection in representations.

    Raises:
        ValueError: no image, or images of another shape.
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

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Examples) and (repr(self), self.size) == (repr(other), other.size)

    def __hash__(self) -> int:
        return hash(repr(self))

    @property
    def size(self) -> int:
        """Side of the squares in pixels."""
        return self.images.shape[-1]

    @cached_property
    def digest(self) -> str:
        """Eight hexadecimal digits that differ between collections of different images."""
        return tensor_fingerprint(self.images)[:8]

    @classmethod
    def of(cls, images: Iterable[Tensor], name: str = "tensor", size: int | None = None) -> Self:
        """Make a collection of images of any sizes.

        Args:
            images: each (3, H, W) in [0, 1]; a tensor (N, 3, H, W) is N images.
            name: stands for the collection in representations.
            size: side of the squares in pixels; by default the shorter side of the first image, at most `LARGEST`.

        Raises:
            ValueError: no image, or one of another shape.
        """
        squares: list[Tensor] = []
        for image in images:
            size = size or min(*image.shape[-2:], LARGEST)
            squares.append(resize(image[None], (size, size)).clamp(0, 1).cpu())
        if not squares:
            raise ValueError("expected at least one example, got none")
        return cls(torch.cat(squares), name)

    @classmethod
    def read(cls, path: str | os.PathLike[str], size: int | None = None) -> Self:
        """Read the images in a folder, or one image file.

        Args:
            path: the folder or file.
            size: see `of`.

        Raises:
            PrivgenError: there is no such folder, it holds no image, or an image cannot be read.
        """
        if not Path(path).exists():
            raise PrivgenError(f"There is no folder {path}; name one that holds images.")
        files = iter_image_files([path])
        return cls.of((load_image(file).pixels for file in files), Path(path).name or "examples", size)


ExamplesLike: TypeAlias = Examples | Tensor | str | os.PathLike[str]
"""A collection, a batch (N, 3, H, W) in [0, 1], a folder of images, or an image file."""


def as_examples(given: ExamplesLike | None, size: int | None = None) -> Examples | None:
    """Return a collection from anything that holds or names one; None stays None.

    Args:
        given: a collection stays as it is, whatever its size.
        size: see `Examples.of`.

    Raises:
        PrivgenError: see `Examples.read`.
        ValueError: see `Examples.of`; or `given` is something else.
    """
    if given is None or isinstance(given, Examples):
        return given
    if isinstance(given, Tensor):
        return Examples.of(given, size=size)
    if isinstance(given, (str, os.PathLike)):
        return Examples.read(given, size)
    raise ValueError(f"expected examples as a folder or a tensor, got {given!r}")


def as_pair(
    marked: ExamplesLike | None, unmarked: ExamplesLike | None, size: int | None
) -> tuple[Examples | None, Examples | None]:
    """Return marked and unmarked examples as collections; unmarked ones get the size of the marked ones.

    Args:
        marked: see `as_examples`.
        unmarked: see `as_examples`.
        size: see `Examples.of`.

    Raises:
        PrivgenError: see `as_examples`.
        ValueError: see `as_examples`; or a size below 1.
    """
    if size is not None and size < 1:
        raise ValueError(f"expected a size >= 1, got {size}")
    with_mark = as_examples(marked, size)
    return with_mark, as_examples(unmarked, size if with_mark is None else with_mark.size)


def needed(examples: ExamplesLike | None, attack: str, which: str) -> Examples:
    """Return a collection that an attack cannot do without.

    Args:
        examples: what the caller gave.
        attack: name of the attack.
        which: "marked" or "unmarked".

    Raises:
        PrivgenError: there is none; the message says how to give it.
    """
    found = as_examples(examples)
    if found is None:
        raise PrivgenError(f"{attack} needs {which} images: give a folder with --{which} ({which}= in Python).")
    return found
