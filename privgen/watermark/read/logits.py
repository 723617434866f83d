"""What an extractor reads from images of any size."""

from collections.abc import Iterable
from itertools import islice

import torch
from torch import Tensor

from privgen.io.images import LoadedImage
from privgen.io.pixels import floats, resize_image
from privgen.watermark.protocols import ExtractorLike, device_of


@torch.no_grad()
def read_logits(images: Iterable[Tensor | LoadedImage], extractor: ExtractorLike, *, batch_size: int = 16) -> Tensor:
    """Read images of any sizes.

    Args:
        images: each (3, H, W), floats in [0, 1] or samples of a file; a tensor (B, 3, H, W) is B images. An iterator
            is read a batch at a time.
        extractor: images to logits.
        batch_size: images that are read at a time.

    Returns:
        Logits (B, n_bits) float32, on the CPU.

    Raises:
        ValueError: there is no image, or one has another shape.
    """
    remaining, logits = iter(images), []
    while batch := [to_reader(image, extractor) for image in islice(remaining, batch_size)]:
        alike = len({image.shape for image in batch}) == 1  # else the extractor reads images at their own sizes
        parts = [torch.stack(batch)] if alike else [image[None] for image in batch]
        logits += [extractor(part).float().cpu() for part in parts]
    if not logits:
        raise ValueError("expected at least one image, got none")
    return torch.cat(logits)


def to_reader(image: Tensor | LoadedImage, extractor: ExtractorLike) -> Tensor:
    """Resize an image to the square that an extractor reads, on the extractor's device.

    Args:
        image: (3, H, W), floats in [0, 1] or samples of a file.
        extractor: its `config.size` is the side of the square; without one the image keeps its size.

    Returns:
        (3, size, size) float32, or (3, H, W). It is not clipped, because the extractor does not clip either.

    Raises:
        ValueError: the image has another shape.
    """
    pixels = image.stored if isinstance(image, LoadedImage) else image
    if pixels.ndim != 3 or pixels.shape[0] != 3 or 0 in pixels.shape:
        raise ValueError(f"expected pixels of shape (3, height, width), got {tuple(pixels.shape)}")
    pixels, size = pixels.to(device_of(extractor)), getattr(getattr(extractor, "config", None), "size", None)
    return floats(pixels) if size is None else resize_image(pixels, (size, size))
