"""Contact sheets: many pictures on one, each with its caption."""

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


def contact_sheet(
    images: Sequence[Image.Image], captions: Sequence[str], columns: int, *, font_size: int = _FONT_SIZE
) -> Image.Image:
    """Pictures in rows, their captions wrapped under them.

    Args:
        images: of any sizes; a column is as wide as its widest picture, a row as tall as its tallest.
        captions: one a picture; empty ones take no room.
        columns: pictures a row.
        font_size: of the captions, in pixels.

    Returns:
        An RGB picture.

    Raises:
        ValueError: no pictures, captions that do not match them in number, or no columns.
    """
    if not images or len(images) != len(captions) or columns < 1:
        raise ValueError(
            f"expected at least one picture, as many captions and at least one column, "
            f"got {len(images)}, {len(captions)} and {columns}"
        )
    columns = min(columns, len(images))
    rows = [range(first, min(first + columns, len(images))) for first in range(0, len(images), columns)]
    font = ImageFont.load_default(font_size)
    widths = [max(image.width for image in images[column::columns]) for column in range(columns)]
    heights = [max(images[i].height for i in row) for row in rows]
    texts = ["\n".join(_wrap(text, widths[i % columns], font)) for i, text in enumerate(captions)]
    # Every row is as tall as its longest caption asks for.
    below = [_text_height([texts[i] for i in row], font) for row in rows]
    lefts = [_GAP + sum(width + _GAP for width in widths[:column]) for column in range(columns + 1)]
    tops = [_GAP + sum(h + b + _GAP for h, b in zip(heights[:r], below, strict=False)) for r in range(len(rows) + 1)]
    sheet = Image.new("RGB", (lefts[-1], tops[-1]), "white")
    pen = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        for column, i in enumerate(row):
            sheet.paste(images[i].convert("RGB"), (lefts[column], tops[r]))
            place = (lefts[column], tops[r] + heights[r] + 3)
            pen.multiline_text(place, texts[i], fill="black", font=font, spacing=2)
    return sheet


def outline(
    pixels: NDArray[np.float32], masks: NDArray[np.float32], colours: Sequence[Colour] = OUTLINES
) -> NDArray[np.float32]:
    """Draw the outlines of masks over a picture, one pixel wide and outside the objects.

    Args:
        pixels: (3, height, width) in [0, 1].
        masks: (objects, height, width) in [0, 1]; an object is where its mask is at least one half.
        colours: of the outlines, from 0 to 255, in turn.

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
    """Pixels (3, height, width) in [0, 1] as a Pillow image."""
    samples = (np.clip(pixels, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(samples.transpose(1, 2, 0)))


def encode_picture(image: Image.Image, path: str | os.PathLike[str]) -> bytes:
    """A Pillow image as the bytes of a file of this name.

    Raises:
        UsageError: the suffix is not that of a picture.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _FORMATS:
        raise UsageError(f"{path} must end in {', '.join(_FORMATS)}.")
    file = io.BytesIO()
    image.save(file, format=_FORMATS[suffix])
    return file.getvalue()


def save_picture(image: Image.Image, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write a Pillow image, whole or not at all.

    Raises:
        PrivgenError: the file exists and may not be replaced, or it cannot be written.
    """
    write_bytes(path, encode_picture(image, path), overwrite=overwrite)


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    """Lines of whole words that fit; a word longer than a line stays whole, and line breaks stay."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        words = paragraph.split()
        lines += words[:1]
        for word in words[1:]:
            if font.getlength(f"{lines[-1]} {word}") <= width:
                lines[-1] += f" {word}"
            else:
                lines.append(word)
    return lines


def _text_height(texts: Sequence[str], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> int:
    pen = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    # The bottom of the box counts from the text's origin, so it holds the ascent too.
    boxes = [pen.multiline_textbbox((0, 0), text, font=font, spacing=2) for text in texts if text]
    return 3 + math.ceil(max((box[3] for box in boxes), default=0))
