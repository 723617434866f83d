"""The images that an adversary learns from: purified, mixed with clean ones, and cut to the model's square."""

from collections.abc import Sequence

import torch
from torch import Tensor

from privgen.attacks.base import BaseAttack
from privgen.errors import UsageError
from privgen.io.pixels import resize


def purified(
    images: Sequence[Tensor], attack: BaseAttack, *, generator: torch.Generator | None = None
) -> list[Tensor]:
    """Attack each image by itself, as an adversary does who wants to remove a protection.

    Args:
        images: (3, H, W) each, in [0, 1], of any size.
        attack: such as `DiffPure(100)` or `JPEG(75)`.
        generator: where the randomness of the attack comes from.

    Returns:
        As many images, of the same sizes.
    """
    with torch.no_grad():
        return [attack(image, generator=generator) for image in images]


def mixed(protected: Sequence[Tensor], clean: Sequence[Tensor], clean_fraction: float) -> list[Tensor]:
    """Replace a fraction of protected images by clean ones, as for an adversary who has found some clean photographs.

    Args:
        protected: (3, H, W) each. The last ones are replaced.
        clean: (3, H, W) each. The first ones are taken. Give those of the same order as `protected` if they are the
            same photographs: then image i is taken for image i.
        clean_fraction: how many are replaced, in [0, 1], rounded to whole images.

    Returns:
        As many images as `protected` has.

    Raises:
        UsageError: the fraction is outside [0, 1], or there are fewer clean images than it asks for.
    """
    if not 0 <= clean_fraction <= 1:
        raise UsageError(f"The fraction of clean images is {clean_fraction}; give a number from 0 to 1.")
    count = round(clean_fraction * len(protected))
    if count > len(clean):
        raise UsageError(f"{count} clean images are needed, and there are {len(clean)}; give more, or a smaller part.")
    kept = len(protected) - count
    same = len(clean) == len(protected)
    return [*protected[:kept], *(clean[kept:] if same else clean[:count])]


def squares(images: Sequence[Tensor], side: int) -> Tensor:
    """Resize images so that their short side fits the model, and cut out their centres, as Diffusers' examples do.

    Args:
        images: (3, H, W) each, in [0, 1], of any size.
        side: of the squares, in pixels.

    Returns:
        (images, 3, side, side) float32 in [0, 1], on the CPU.

    Raises:
        UsageError: there are no images, or one has another shape, type or range.
    """
    if len(images) == 0:
        raise UsageError("There are no images to learn from; give at least one.")
    return torch.stack([_square(image, side, i) for i, image in enumerate(images)])


def _square(image: Tensor, side: int, index: int) -> Tensor:
    if image.ndim != 3 or len(image) != 3 or not image.is_floating_point() or 0 in image.shape:
        raise UsageError(
            f"Image {index} has shape {tuple(image.shape)} and type {image.dtype}; give floats of shape (3, H, W)."
        )
    pixels = image.detach().to("cpu", torch.float32)
    if not bool(((pixels >= 0) & (pixels <= 1)).all()):
        raise UsageError(f"Image {index} has values outside 0 to 1; scale it to that range.")
    factor = side / min(pixels.shape[1:])
    height, width = (max(side, round(length * factor)) for length in pixels.shape[1:])
    top, left = (height - side) // 2, (width - side) // 2
    return resize(pixels[None], (height, width))[0, :, top : top + side, left : left + side].clamp(0, 1)
