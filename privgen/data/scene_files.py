"""Scenes as files: a contact sheet, or a folder that Hugging Face datasets reads as an `imagefolder`."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from privgen.data.scenes import NOUNS, SIZE, Scene, draw_scene
from privgen.data.sheets import contact_sheet, encode_picture, outline, picture, save_picture
from privgen.errors import PrivgenError
from privgen.io.files import refuse_existing, write_bytes, write_text
from privgen.io.progress import Bar


METADATA = "metadata.jsonl"
"""Name of the file that says what each picture of a folder shows."""


@dataclass(frozen=True)
class SceneSet:
    """The scenes of the seeds `seed`, `seed + 1` and so on; iterate over it to draw them.

    Attributes:
        seed: of the first scene.
        n: number of scenes.
        nouns: objects to choose from.
        size: side of the pictures in pixels.
    """

    seed: int
    n: int
    nouns: tuple[str, ...] = NOUNS
    size: int = SIZE

    def __len__(self) -> int:
        """The number of scenes."""
        return self.n

    def __iter__(self) -> Iterator[Scene]:
        """Draw one scene after the other."""
        return (draw_scene(self.seed + i, size=self.size, nouns=self.nouns) for i in range(self.n))


@dataclass(frozen=True)
class SceneFolder:
    """A folder of scenes that was written.

    Attributes:
        folder: its path.
        images: number of pictures.
        masks: number of masks.
        seed: of the first scene.
    """

    folder: Path
    images: int
    masks: int
    seed: int


def write_scene_sheet(
    path: str | os.PathLike[str], scenes: SceneSet, *, masks: bool = False, columns: int = 8, overwrite: bool = False
) -> None:
    """Write a contact sheet of scenes with their captions.

    Args:
        path: picture file to write.
        scenes: what to draw.
        masks: outline the objects.
        columns: pictures in a row.
        overwrite: replace an existing file.

    Raises:
        UsageError: the file name ends in no suffix of a picture.
        PrivgenError: the file exists and `overwrite` is off, or it cannot be written.
    """
    refuse_existing(path, overwrite=overwrite)
    drawn = list(scenes)
    images = [picture(outline(scene.pixels, scene.masks) if masks else scene.pixels) for scene in drawn]
    save_picture(contact_sheet(images, [scene.caption for scene in drawn], columns), path, overwrite=overwrite)


def write_scenes(
    folder: str | os.PathLike[str], scenes: SceneSet, *, masks: bool = False, overwrite: bool = False
) -> SceneFolder:
    """Write scenes as PNG files, and what they show into `metadata.jsonl`.

    A line of the metadata holds `file_name`, `text` (the caption), `seed` and the fields of the scene's `SceneSpec`.
    The metadata are written last, so a folder that has them is complete. If you repeat an interrupted call, it goes
    on: files that already hold what it would write are left as they are.

    Args:
        folder: where to write; made if it is missing.
        scenes: what to draw.
        masks: also write the masks of the objects, as grey PNG files in `masks/`. The entry `mask_file_names` of the
            metadata lists them.
        overwrite: replace files that hold something else.

    Raises:
        PrivgenError: a file exists, holds something else and `overwrite` is off, or the folder cannot be written.
    """
    target = Path(folder)
    refuse_existing(target / METADATA, overwrite=overwrite)
    lines, count = [], 0
    for i, scene in enumerate(Bar(scenes, desc="scenes", unit="scene", disable=None)):
        row = {"file_name": f"{i:06d}.png", "text": scene.caption, "seed": scenes.seed + i, **asdict(scene.spec)}
        _write(target / f"{i:06d}.png", picture(scene.pixels), overwrite)
        if masks:
            names = [f"masks/{i:06d}-{k}.png" for k in range(len(scene.masks))]
            for name, mask in zip(names, scene.masks, strict=True):
                _write(target / name, Image.fromarray((mask * 255).round().astype(np.uint8)), overwrite)
            row["mask_file_names"] = names
            count += len(names)
        lines.append(f"{json.dumps(row)}\n")
    write_text(target / METADATA, "".join(lines), overwrite=overwrite)
    return SceneFolder(target, len(scenes), count, scenes.seed)


def _write(path: Path, image: Image.Image, overwrite: bool) -> None:
    """Write a picture, unless the file holds it already."""
    data = encode_picture(image, path)
    if path.is_file() and path.read_bytes() == data:
        return
    try:
        write_bytes(path, data, overwrite=overwrite)
    except PrivgenError as error:
        if path.exists() and not overwrite:
            raise PrivgenError(f"{path} exists and holds another picture; choose another folder.") from error
        raise
