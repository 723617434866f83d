"""The photographs that are measured, each at its own size."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from PIL import Image
from torch import Tensor

from privgen.errors import UsageError
from privgen.evaluation.text_to_image.autoencoder import heldout_photos
from privgen.evaluation.watermark.generation import as_saved
from privgen.io.files import iter_image_files
from privgen.io.fingerprints import file_fingerprint
from privgen.io.images import load_image, to_pil


@dataclass(frozen=True)
class Photographs:
    """Image files by number. Photographs differ in size, so they come one at a time.

    Attributes:
        paths: of the files.
        seed: of the attacks.
    """

    paths: tuple[Path, ...]
    seed: int = 0

    @classmethod
    def some(cls, folder: str | os.PathLike[str] | None, n: int, seed: int) -> Photographs:
        """Photographs of a folder, in one random order that never changes; fewer if it holds fewer.

        Fewer photographs are always among more of them.

        Args:
            folder: holds image files; None is the packaged photographs that no shipped model has seen.
            n: how many, at most.
            seed: of the attacks.

        Raises:
            UsageError: the folder does not exist, or holds fewer than two images.
        """
        place = heldout_photos() if folder is None else Path(folder)
        if not place.is_dir():
            raise UsageError(f"--images {place} is not a folder; name one that holds photographs.")
        found = list(iter_image_files([place]))
        if len(found) < 2:
            raise UsageError(f"--images {place} holds one image; intervals need at least two.")
        Random(0).shuffle(found)
        return cls(tuple(found[:n]), seed)

    @property
    def batch_size(self) -> int:
        """One, because images differ in size."""
        return 1

    def images(self, numbers: Sequence[int]) -> Tensor:
        """The pixels of one photograph, (1, 3, H, W) in [0, 1], rounded to 8 bits.

        Args:
            numbers: of the photograph, a single one.

        Raises:
            PrivgenError: the file cannot be read.
        """
        [number] = numbers
        return as_saved(load_image(self.paths[number]).pixels[None])

    def picture(self, number: int) -> Image.Image:
        """A photograph as a Pillow image without transparency, of mode L or RGB.

        Raises:
            PrivgenError: the file cannot be read.
        """
        return to_pil(replace(load_image(self.paths[number]), alpha=None))

    def sizes(self) -> list[tuple[int, int]]:
        """Height and width of each photograph.

        Raises:
            PrivgenError: a file cannot be read.
        """
        loaded = map(load_image, self.paths)
        return [(image.height, image.width) for image in loaded]

    def fingerprints(self) -> list[str]:
        """What identifies each file: sixteen hexadecimal digits."""
        return [file_fingerprint(path)[:16] for path in self.paths]
