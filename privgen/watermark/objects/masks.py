"""Masks of objects: at the image's size, with soft seams, and without overlaps."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate, pad

from privgen.errors import UsageError
from privgen.io.image_like import open_images
from privgen.io.pixels import luma


SEAM = 0.012
"""Width of a soft seam, as a fraction of the image's short side. A mark fades out over it, half of it outside the
mask."""

_OTHER_SHAPE = 0.05  # logarithm of the ratio of aspect ratios


def check_mask(mask: Tensor, name: str) -> Tensor:
    """Check the mask of an object, and return it in float32.

    Args:
        mask: (H, W) in [0, 1].
        name: of the object, for messages.

    Raises:
        UsageError: the mask has another shape, values outside [0, 1], or is empty.
    """
    if mask.ndim != 2 or 0 in mask.shape:
        raise UsageError(f"The mask of {name} has the shape {tuple(mask.shape)}; give one of (height, width).")
    mask = mask.float()
    if not bool(mask.isfinite().all()) or float(mask.min()) < -1e-3 or float(mask.max()) > 1 + 1e-3:
        raise UsageError(f"The mask of {name} has values outside 0 to 1; scale it to 0 for outside and 1 for inside.")
    if float(mask.max()) < 0.5:
        raise UsageError(f"The mask of {name} is empty; give one that is 1 where the object is.")
    return mask.clamp(0, 1)


def fitted(mask: Tensor, size: tuple[int, int], name: str) -> Tensor:
    """Check the mask of an object, and return it at the image's size.

    Args:
        mask: (H, W) in [0, 1], of about the image's shape.
        size: height and width of the image.
        name: of the object, for messages.

    Raises:
        UsageError: see `check_mask`; or the mask has another shape than the image.
    """
    mask = check_mask(mask, name)
    (height, width), given = size, mask.shape
    if abs(math.log(given[1] / given[0] * height / width)) > _OTHER_SHAPE:
        raise UsageError(
            f"The mask of {name} is {given[1]} x {given[0]} pixels and the image {width} x {height}; give a mask of "
            "the image's shape."
        )
    return at_size(mask, size)


def at_size(mask: Tensor, size: tuple[int, int]) -> Tensor:
    """Return a mask (H, W) at another size, by straight lines between its pixels."""
    if tuple(mask.shape) == size:
        return mask
    shrunk = size[0] < mask.shape[0] or size[1] < mask.shape[1]
    return interpolate(mask[None, None], size=size, mode="bilinear", align_corners=False, antialias=shrunk)[0, 0]


def without_overlaps(masks: Sequence[Tensor]) -> Tensor:
    """Return masks in which each pixel belongs to one object: that of the largest value, the last one of equals.

    Args:
        masks: K masks (H, W) in [0, 1].

    Returns:
        (K, H, W).
    """
    stacked = torch.stack(list(masks))
    owner = len(masks) - 1 - stacked.flip(0).argmax(0)
    return stacked * (owner == torch.arange(len(masks), device=stacked.device)[:, None, None])


def with_soft_seams(masks: Tensor) -> Tensor:
    """Return masks (K, H, W) whose edges fall from 1 to 0 over `SEAM`; further out they stay 0."""
    height, width = masks.shape[1:]
    reach = max(1, round(SEAM * min(height, width) / 2))
    padded = pad(masks[None], (reach,) * 4, mode="replicate")
    return avg_pool2d(avg_pool2d(padded, (2 * reach + 1, 1), 1), (1, 2 * reach + 1), 1)[0]


def open_mask(value: Any) -> Tensor:
    """Read a mask: light where the object is.

    Args:
        value: a Pillow image, a path, or an array or tensor (H, W) of booleans, whole numbers or floats in [0, 1].
            Whole numbers go up to 255 or 65535, or are 0 and 1.

    Returns:
        (H, W) float32 in [0, 1].

    Raises:
        PrivgenError: a file or Pillow image cannot be read.
        ValueError: an array or tensor of another shape, type or range.
        TypeError: something else.
    """
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, Tensor):
        if value.ndim != 2:
            raise ValueError(f"expected a mask of shape (height, width), got {tuple(value.shape)}")
        two_values = not value.is_floating_point() and bool(((value == 0) | (value == 1)).all())
        value = (value.float() if two_values else value)[None]
    return luma(open_images(value).images[0].pixels)[0].float()
