"""Images as callers hold them: Pillow images, paths, arrays and tensors, single or many; what comes in comes back."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from privgen.io.images import LoadedImage, from_pil, load_image, to_pil
from privgen.io.pixels import floats


ImageLike: TypeAlias = "Image.Image | str | os.PathLike[str] | NDArray[Any] | Tensor"
"""One image: a Pillow image; the path of a file; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, uint16
or floats in [0, 1]; or a tensor (1, H, W), (3, H, W) or (4, H, W) of uint8 or floats in [0, 1]."""

ImagesLike: TypeAlias = "ImageLike | Sequence[ImageLike]"
"""One image, a list of images, or a batch: an array (B, H, W, C) or a tensor (B, C, H, W)."""


# What Pillow says of an image, and is not true of its new pixels: they are upright, and transparency is a channel.
_TURNED = frozenset({"transparency", "exif", "xmp"})
_FROM_RGB = ("RGBX", "RGBa", "YCbCr", "HSV")  # modes of Pillow that come back, with errors of rounding


@dataclass(frozen=True, eq=False)
class GivenImages:
    """Images that a caller gave, decoded, and the way back to the caller's type.

    Attributes:
        images: the decoded images.
        levels: for each image the steps of its scale, such as 255 for 8 bits; None for floats, which are not rounded.
        single: whether the caller gave one image, not several.
        restore: from new pixels, one (3, H, W) in [0, 1] for each image, to what the caller gave.
    """

    images: tuple[LoadedImage, ...]
    levels: tuple[int | None, ...]
    single: bool
    restore: Callable[[Sequence[Tensor]], Any]


@dataclass(frozen=True, eq=False)
class _One:
    image: LoadedImage
    levels: int | None
    restore: Callable[[Tensor], Any]


def open_images(value: Any) -> GivenImages:
    """Decode images of any kind that `ImagesLike` names.

    Args:
        value: one image, a list or tuple of images, or a batch as one array or tensor.

    Returns:
        The images. `restore` gives a list for a list, a batch for a batch; a path comes back as a Pillow image. Alpha,
        greyness, number type, device and colour profile are those of the image that was given. New pixels may have
        another size; the image then loses its alpha.

    Raises:
        PrivgenError: a file or Pillow image cannot be decoded, or its size is outside the limits.
        ValueError: an array or tensor of another shape, type or range.
        TypeError: something else than an image.
    """
    if isinstance(value, list | tuple):
        parts = [_open(item) for item in value]
        return _joined(parts, single=False, together=lambda images: list(images))
    if isinstance(value, Tensor) and value.ndim == 4:
        return _joined([_from_tensor(item) for item in value], single=False, together=torch.stack)
    if isinstance(value, np.ndarray) and value.ndim == 4:
        return _joined([_from_array(item) for item in value], single=False, together=np.stack)
    return _joined([_open(value)], single=True, together=lambda images: images[0])


def _joined(parts: Sequence[_One], *, single: bool, together: Callable[[list[Any]], Any]) -> GivenImages:
    if not parts:
        raise ValueError("expected at least one image, got none")

    def restore(pixels: Sequence[Tensor]) -> Any:
        return together([part.restore(plane) for part, plane in zip(parts, pixels, strict=True)])

    return GivenImages(tuple(part.image for part in parts), tuple(part.levels for part in parts), single, restore)


def _open(value: Any) -> _One:
    if isinstance(value, Image.Image):
        return _from_loaded(from_pil(value), value)
    if isinstance(value, str | os.PathLike):
        return _from_loaded(load_image(value), None)
    if isinstance(value, np.ndarray):
        return _from_array(value)
    if isinstance(value, Tensor):
        return _from_tensor(value)
    raise TypeError(f"expected a Pillow image, a path, an array or a tensor, got {type(value).__name__}")


def _from_loaded(loaded: LoadedImage, given: Image.Image | None) -> _One:
    deep_grey = given is not None and given.mode.startswith("I;16")

    def restore(pixels: Tensor) -> Image.Image:
        if deep_grey:
            image = Image.fromarray(_to_numbers(_grey(floats(pixels)), np.dtype(np.uint16))[0])
        else:
            image = to_pil(loaded.with_pixels(pixels))
        if given is not None and given.mode in _FROM_RGB and image.mode in ("RGB", "RGBA"):
            image = image.convert(given.mode)
        image.info = _said(loaded, given)
        return image

    return _One(loaded, 65535 if deep_grey else 255, restore)


def _said(loaded: LoadedImage, given: Image.Image | None) -> dict[str | tuple[int, int], Any]:
    """What Pillow should say of an image with new pixels."""
    said: dict[str | tuple[int, int], Any] = {} if given is None else dict(given.info)
    for name in _TURNED:
        said.pop(name, None)
    said.update(loaded.metadata.info())
    if loaded.mode == "CMYK":  # it has become sRGB
        said.pop("icc_profile", None)
    return said


def _from_array(array: NDArray[Any]) -> _One:
    planes = array[:, :, None] if array.ndim == 2 else array
    if planes.ndim != 3 or planes.shape[2] not in (1, 3, 4):
        raise ValueError(f"expected an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), got shape {array.shape}")
    image, levels = _from_planes(torch.from_numpy(np.moveaxis(planes, 2, 0).copy()))

    def restore(pixels: Tensor) -> NDArray[Any]:
        numbers = _to_numbers(_planes_of(image.with_pixels(pixels)), array.dtype)
        return np.ascontiguousarray(numbers[0] if array.ndim == 2 else np.moveaxis(numbers, 0, 2))

    return _One(image, levels, restore)


def _from_tensor(tensor: Tensor) -> _One:
    if tensor.ndim != 3 or tensor.shape[0] not in (1, 3, 4):
        raise ValueError(f"expected a tensor (1, H, W), (3, H, W) or (4, H, W), got shape {tuple(tensor.shape)}")
    image, levels = _from_planes(tensor.detach())

    def restore(pixels: Tensor) -> Tensor:
        planes = _planes_of(image.with_pixels(pixels.to(tensor.device)))
        return planes.to(tensor.dtype) if levels is None else (planes.clamp(0, 1) * levels).round().to(tensor.dtype)

    return _One(image, levels, restore)


def _from_planes(planes: Tensor) -> tuple[LoadedImage, int | None]:
    """From 1, 3 or 4 planes of numbers."""
    levels = None
    if not planes.is_floating_point():
        if planes.dtype not in (torch.uint8, torch.uint16):
            raise ValueError(f"expected numbers of type uint8, uint16 or floats in [0, 1], got {planes.dtype}")
        levels = 255 if planes.dtype == torch.uint8 else 65535
    x = planes.float() if levels is None else planes.float() / levels
    if not bool(x.isfinite().all()) or float(x.min()) < -1e-3 or float(x.max()) > 1 + 1e-3:
        low, high = float(x.min()), float(x.max())
        raise ValueError(
            f"expected floats in [0, 1], got {low:.3g} to {high:.3g}; divide by 255, or shift by (x + 1) / 2"
        )
    grey, alpha = len(x) == 1, x[3:] if len(x) == 4 else None
    pixels = x.expand(3, -1, -1) if grey else x[:3]
    return LoadedImage(pixels, alpha, grey, 16 if levels == 65535 else 8), levels


def _planes_of(image: LoadedImage) -> Tensor:
    planes = _grey(image.pixels) if image.grey else image.pixels
    return planes if image.alpha is None else torch.cat([planes, image.alpha.to(planes)])


def _grey(pixels: Tensor) -> Tensor:
    """All three planes of a marked grey image are equal, because the mark was written into its luma."""
    return pixels.mean(dim=-3, keepdim=True)


def _to_numbers(planes: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    numbers: NDArray[Any] = planes.detach().cpu().float().numpy()
    if not np.issubdtype(dtype, np.floating):
        numbers = np.rint(numbers.clip(0, 1) * np.iinfo(dtype).max)
    return numbers.astype(dtype)


def to_pixels(value: Any) -> tuple[list[Tensor], Callable[[Sequence[Tensor]], Any]]:
    """Pixels of images of any kind, for methods that look at nothing else.

    Args:
        value: see `open_images`.

    Returns:
        For each image (3, H, W) float32 in [0, 1]; and the function from new pixels back to the caller's type.
    """
    given = open_images(value)
    return [image.pixels for image in given.images], given.restore
