"""Scenes as files: a contact sheet, or a folder that Hugging Face datasets reads as an `imagefolder`."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from privgen.data.scenes import NOUNS, Scene, draw_scene
from privgen.data.sheets import contact_sheet, encode_picture, outline, picture, save_picture
from privgen.errors import PrivgenError
from privgen.io.files import refuse_existing, write_bytes, write_text


METADATA = "metadata.jsonl"


@dataclass(frozen=True)
class SceneFolder:
    """A folder of scenes.

    Attributes:
        folder: where they lie.
        images: number of pictures.
        masks: number of masks.
        seed: of the first scene; the others follow it.
    """

    folder: Path
    images: int
    masks: int
    seed: int


def scenes_from(seed: int, n: int, *, nouns: tuple[str, ...] = NOUNS, size: int = 128) -> Iterator[Scene]:
    """The scenes of the seeds `seed`, `seed + 1`, ...

    Args:
        seed: of the first.
        n: how many.
        nouns: objects to choose from.
        size: side of the pictures in pixels.
    """
    return (draw_scene(seed + i, size=size, nouns=nouns) for i in range(n))


def write_scene_sheet(
    path: str | os.PathLike[str],
    seed: int,
    n: int,
    *,
    nouns: tuple[str, ...] = NOUNS,
    size: int = 128,
    masks: bool = False,
    columns: int = 8,
    overwrite: bool = False,
) -> None:
    """Write a contact sheet of scenes with their captions.

    Args:
        path: picture file to write.
        seed: of the first scene.
        n: how many.
        nouns: objects to choose from.
        size: side of the pictures in pixels.
        masks: outline the objects.
        columns: pictures a row.
        overwrite: replace an existing file.

    Raises:
        PrivgenError: the file exists, or cannot be written.
    """
    refuse_existing(path, overwrite=overwrite)
    drawn = list(scenes_from(seed, n, nouns=nouns, size=size))
    images = [picture(outline(scene.pixels, scene.masks) if masks else scene.pixels) for scene in drawn]
    save_picture(contact_sheet(images, [scene.caption for scene in drawn], columns), path, overwrite=overwrite)


def write_scenes(
    folder: str | os.PathLike[str],
    seed: int,
    n: int,
    *,
    nouns: tuple[str, ...] = NOUNS,
    size: int = 128,
    masks: bool = False,
    overwrite: bool = False,
) -> SceneFolder:
    """Write scenes as PNG files beside `metadata.jsonl`, which holds `file_name`, `text` (the caption) and the rest.

    An interrupted call goes on when it is repeated: files that hold what would be written are kept. The metadata are
    written last, so a folder that has them is complete.

    Args:
        folder: made if it is missing.
        seed: of the first scene.
        n: how many.
        nouns: objects to choose from.
        size: side of the pictures in pixels.
        masks: also write the objects' masks, as grey PNG files in `masks/`, which `mask_file_names` lists.
        overwrite: replace files that hold something else.

    Raises:
        PrivgenError: files that hold something else exist, or the folder cannot be written.
    """
    target = Path(folder)
    refuse_existing(target / METADATA, overwrite=overwrite)
    rows = []
    scenes = scenes_from(seed, n, nouns=nouns, size=size)
    for i, scene in enumerate(tqdm(scenes, total=n, desc="scenes", unit="scene", disable=None)):
        row = {"file_name": f"{i:06d}.png", "text": scene.caption, "seed": seed + i, **asdict(scene.spec)}
        _write(target / f"{i:06d}.png", picture(scene.pixels), overwrite)
        if masks:
            row["mask_file_names"] = [f"masks/{i:06d}-{k}.png" for k in range(len(scene.masks))]
            for name, mask in zip(row["mask_file_names"], scene.masks, strict=True):
                _write(target / name, Image.fromarray((mask * 255).round().astype(np.uint8)), overwrite)
        rows.append(row)
    write_text(target / METADATA, _lines(rows), overwrite=overwrite)
    return SceneFolder(target, n, sum(len(row.get("mask_file_names", ())) for row in rows), seed)


def _lines(rows: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def _write(path: Path, image: Image.Image, overwrite: bool) -> None:
    data = encode_picture(image, path)
    if path.is_file() and path.read_bytes() == data:
        return
    try:
        write_bytes(path, data, overwrite=overwrite)
    except PrivgenError as error:
        if path.exists() and not overwrite:
            raise PrivgenError(f"{path} exists and holds another picture; choose another folder.") from error
        raise
