"""A picture of who owns what in an image: heat maps, boxes, names and p-values."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.functional import interpolate

from privgen.watermark.regions import Region


COLOURS = ((230, 60, 60), (60, 120, 240), (40, 170, 80), (240, 160, 20), (160, 80, 220), (20, 180, 190))
"""Of the keys, in turn."""

_SHORT = 384  # pixels; smaller images are enlarged, so that names can be read
_DIMMED, _WARMED = 0.55, 0.6  # brightness of the image beneath, and opacity of the hottest place


def overlay(pixels: Tensor, regions: Sequence[Region]) -> Image.Image:
    """Draw what keys own over an image.

    Args:
        pixels: (3, H, W) in [0, 1].
        regions: of the image; those of the same key share a colour.

    Returns:
        An RGB image, of the size of the image or, for small ones, of a multiple of it.
    """
    height, width = pixels.shape[1:]
    factor = max(1, -(-_SHORT // min(height, width)))
    size = (height * factor, width * factor)
    picture = interpolate(pixels[None].float().cpu(), size=size, mode="nearest")[0]
    owners = list(dict.fromkeys(region.key_id for region in regions))
    colours = {owner: COLOURS[i % len(COLOURS)] for i, owner in enumerate(owners)}
    if any(region.heat is not None for region in regions):
        picture = _DIMMED * picture + (1 - _DIMMED) * picture.mean(0, keepdim=True) * _DIMMED
    for region in regions:
        if region.heat is not None:
            heat = interpolate(region.heat[None, None], size=size, mode="bilinear", align_corners=False)[0]
            colour = torch.tensor(colours[region.key_id])[:, None, None] / 255
            picture = torch.lerp(picture, colour.expand_as(picture), _WARMED * heat)
    array: NDArray[np.uint8] = (picture.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    image = Image.fromarray(array)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(max(12, min(size) // 28))
    line = max(2, min(size) // 200)
    for region in regions:
        _draw(draw, region, colours[region.key_id], (size[1], size[0]), line, font)
    return image


def _draw(
    draw: ImageDraw.ImageDraw,
    region: Region,
    colour: tuple[int, int, int],
    size: tuple[int, int],
    line: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    """Draw the box of a region, and whose it is, above the box or inside it."""
    width, height = size
    left, top, right, bottom = region.box
    box = (left * width, top * height, right * width - 1, bottom * height - 1)
    draw.rectangle(box, outline=colour, width=line)
    text = f"{region.key}  p = {region.p_value:.0e}"
    _, _, wide, high = draw.textbbox((0, 0), text, font=font)
    x = min(box[0], max(0, width - wide - 2 * line))
    y = box[1] - high - 2 * line
    y = y if y >= 0 else box[1] + line
    draw.rectangle((x, y, x + wide + 2 * line, y + high + 2 * line), fill=colour)
    draw.text((x + line, y + line), text, fill=(255, 255, 255), font=font)
