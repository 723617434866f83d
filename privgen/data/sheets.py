"""Contact sheets: many captioned pictures on one, and pictures as files."""

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from privgen.errors import UsageError
from privgen.io.files import write_bytes


Colour = tuple[int, int, int]
OUTLINES: tuple[Colour, ...] = ((255, 255, 255), (255, 220, 0), (0, 230, 255))
"""Colours of the outlines of a scene's first, second and third object."""

_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_FONT_SIZE = 11
_GAP = 8


def contact_sheet(images: Sequence[Image.Image], captions: Sequence[str], columns: int) -> Image.Image:
    """Lay out pictures in rows, each with its caption under it.

    Args:
        images: of any sizes. Every cell is as large as the largest of them.
        captions: one for each picture. Empty captions take no room.
        columns: pictures in a row.

    Returns:
        An RGB picture.

    Raises:
        ValueError: there are no pictures, more or fewer captions than pictures, or no columns.
    """
    if not images or len(images) != len(captions) or columns < 1:
        raise ValueError(
            f"expected at least one picture, as many captions and at least one column, "
            f"got {len(images)}, {len(captions)} and {columns}"
        )
    columns = min(columns, len(images))
    font = ImageFont.load_default(_FONT_SIZE)
    width, height = max(i.width for i in images), max(i.height for i in images)
    texts = ["\n".join(_wrap(caption, width, font)) for caption in captions]
    rows = math.ceil(len(images) / columns)
    # Each row has room for its longest caption.
    below = [_text_height(texts[r * columns : (r + 1) * columns], font) for r in range(rows)]
    tops = [_GAP + sum(height + b + _GAP for b in below[:r]) for r in range(rows)]
    sheet = Image.new("RGB", (_GAP + columns * (width + _GAP), tops[-1] + height + below[-1] + _GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for i, (image, text) in enumerate(zip(images, texts, strict=True)):
        left, top = _GAP + i % columns * (width + _GAP), tops[i // columns]
        sheet.paste(image.convert("RGB"), (left, top))
        pen.multiline_text((left, top + height + 3), text, fill="black", font=font, spacing=2)
    return sheet


def outline(
    pixels: NDArray[np.float32], masks: NDArray[np.float32], colours: Sequence[Colour] = OUTLINES
) -> NDArray[np.float32]:
    """Draw the outlines of masks over a picture, one pixel wide and outside the objects.

    Args:
        pixels: (3, height, width) in [0, 1].
        masks: (objects, height, width) in [0, 1]. An object lies where its mask is at least one half.
        colours: RGB from 0 to 255, for the first object, the second and so on, and then again from the first.

    Returns:
        A new picture of the same shape and range.
    """
    drawn = pixels.copy()
    for i, mask in enumerate(masks):
        inside = np.pad(mask >= 0.5, 1)
        near = inside[:-2, 1:-1] | inside[2:, 1:-1] | inside[1:-1, :-2] | inside[1:-1, 2:]
        colour = np.asarray(colours[i % len(colours)], np.float32) / 255
        drawn[:, near & ~inside[1:-1, 1:-1]] = colour[:, None]
    return drawn


def picture(pixels: NDArray[np.float32]) -> Image.Image:
    """Convert pixels, (3, height, width) in [0, 1], to a Pillow image."""
    samples = (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(samples.transpose(1, 2, 0)))


def encode_picture(image: Image.Image, path: str | os.PathLike[str]) -> bytes:
    """Encode a Pillow image in the format that the suffix of a file name stands for.

    Raises:
        UsageError: the suffix stands for no format that is written here.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise UsageError(f"{path} must end in {', '.join(_FORMATS)}.")
    file = io.BytesIO()
    image.save(file, format=_FORMATS[suffix])
    return file.getvalue()


def save_picture(image: Image.Image, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a Pillow image to a file, whole or not at all.

    Raises:
        UsageError: see `encode_picture`.
        PrivgenError: the file exists and `overwrite` is off, or it cannot be written.
    """
    write_bytes(path, encode_picture(image, path), overwrite=overwrite)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Break a text into lines that fit. A word that is longer than a line is not broken."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _text_height(texts: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    # The bottom of the box is measured from the text's origin, so it includes the ascent.
    boxes = [pen.multiline_textbbox((0, 0), text, font=font, spacing=2) for text in texts if text]
    return 3 + math.ceil(max((box[3] for box in boxes), default=0))
