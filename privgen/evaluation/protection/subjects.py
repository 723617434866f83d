"""The subjects of a study: scenes of a held-out noun, or a folder of photographs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from privgen.attacks.adversaries import squares
from privgen.data.scenes import PREVIEW_SEED, draw_scene
from privgen.errors import PrivgenError, UsageError
from privgen.io.files import iter_image_files
from privgen.io.images import load_image


IMAGES = 6
"""Pictures of each scene's subject that an adversary trains on."""

FEWEST = 3
"""The fewest photographs of a subject."""


@dataclass(frozen=True)
class Subject:
    """What an adversary learns.

    Attributes:
        name: in reports.
        noun: of the scenes; empty for photographs.
        images: (3, H, W) each, in [0, 1]: what is protected, and trained on.
        source: where photographs come from, as the user named it.
    """

    name: str
    noun: str
    images: list[Tensor] = field(repr=False)
    source: str = ""

    def shown(self, count: int, side: int) -> Tensor:
        """Clean pictures of the subject for the judge, (count, 3, side, side).

        Of scenes they are others than those trained on. Photographs are shown again, mirrored in turn.

        Args:
            count: how many pictures.
            side: in pixels.
        """
        if self.noun:
            return scenes(self.noun, count, side, first=PREVIEW_SEED + 10_000)
        pixels = squares(self.images, side)
        pictures = torch.cat([pixels, pixels.flip(-1)])
        return pictures.repeat(-(-count // len(pictures)), 1, 1, 1)[:count]


def scenes(noun: str, count: int, side: int, first: int = PREVIEW_SEED) -> Tensor:
    """Scenes with one object and no texture, (count, 3, side, side).

    Args:
        noun: the object.
        count: how many scenes.
        side: in pixels.
        first: seed of the first scene.
    """
    drawn = [draw_scene(first + i, size=side, nouns=(noun,), count=1, textured=False) for i in range(count)]
    return torch.stack([torch.from_numpy(scene.pixels) for scene in drawn])


def scene_subject(noun: str, side: int) -> Subject:
    """The subject that scenes of a noun show, at a model's size."""
    return Subject(noun, noun, list(scenes(noun, IMAGES, side)))


def photo_subject(paths: Sequence[str | os.PathLike[str]], name: str = "") -> Subject:
    """The subject of your own photographs.

    Args:
        paths: image files, and folders of them.
        name: in reports; by default that of the first path.

    Raises:
        UsageError: fewer than `FEWEST` images.
        PrivgenError: one does not exist or cannot be read.
    """
    if missing := [os.fspath(path) for path in paths if not Path(path).exists()]:
        raise PrivgenError(f"There is no {missing[0]}; name a folder of photographs, or image files.")
    files = iter_image_files(paths)
    if len(files) < FEWEST:
        shown = ", ".join(os.fspath(path) for path in paths)
        raise UsageError(f"{shown}: expected at least {FEWEST} images of the subject, got {len(files)}.")
    pixels = [load_image(file).pixels for file in files]
    return Subject(name or Path(paths[0]).resolve().name, "", pixels, os.fspath(paths[0]))
