"""Photographs of a folder, and random parts of them."""

from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image


@lru_cache(maxsize=4)
def load_photos(folder: Path, shorter_side: int = 384) -> tuple[NDArray[np.uint8], ...]:
    """Load all photographs of a folder and of the folders in it, sorted by name.

    Args:
        folder: holds JPEG, PNG or WebP files.
        shorter_side: larger photographs are scaled down until their shorter side has this many pixels.

    Returns:
        Arrays of shape (H, W, 3).

    Raises:
        ValueError: the folder holds no photograph.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in {".jpg", ".jpeg", ".png", ".webp"})
    if not paths:
        raise ValueError(f"expected photographs in {folder}, found none")
    return tuple(_load(path, shorter_side) for path in paths)


def _load(path: Path, shorter_side: int) -> NDArray[np.uint8]:
    with Image.open(path) as image:
        rgb = image.convert("RGB")
    scale = min(1.0, shorter_side / min(rgb.size))
    if scale < 1:
        rgb = rgb.resize((round(rgb.width * scale), round(rgb.height * scale)), Image.Resampling.LANCZOS)
    return np.asarray(rgb)


def random_crop(photos: tuple[NDArray[np.uint8], ...], side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Cut a square out of one of the photographs, at a random zoom; half of the squares are mirrored.

    Args:
        photos: from `load_photos`.
        side: of the square, in pixels.
        rng: source of randomness.

    Returns:
        Array of shape (3, side, side) in [0, 1].
    """
    photo = photos[rng.integers(len(photos))]
    height, width = photo.shape[:2]
    longest = min(height, width)
    # The zoom is log-uniform, from the whole picture to pixels as they are.
    taken = round(float(np.exp(rng.uniform(np.log(min(side, longest)), np.log(longest)))))
    top, left = int(rng.integers(height - taken + 1)), int(rng.integers(width - taken + 1))
    crop = Image.fromarray(photo[top : top + taken, left : left + taken])
    crop = crop.resize((side, side), Image.Resampling.BOX if taken >= side else Image.Resampling.BICUBIC)
    return _as_pixels(crop, mirrored=rng.random() < 0.5)


def random_view(photos: tuple[NDArray[np.uint8], ...], side: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """Squeeze most of one of the photographs into a square, as an extractor sees it; half of them are mirrored.

    Args:
        photos: from `load_photos`.
        side: of the square, in pixels.
        rng: source of randomness.

    Returns:
        Array of shape (3, side, side) in [0, 1].
    """
    photo = photos[rng.integers(len(photos))]
    height, width = (round(length * rng.uniform(0.5, 1.0)) for length in photo.shape[:2])
    top, left = int(rng.integers(photo.shape[0] - height + 1)), int(rng.integers(photo.shape[1] - width + 1))
    view = Image.fromarray(photo[top : top + height, left : left + width])
    return _as_pixels(view.resize((side, side), Image.Resampling.BICUBIC), mirrored=rng.random() < 0.5)


def _as_pixels(image: Image.Image, *, mirrored: bool) -> NDArray[np.float32]:
    pixels = np.asarray(image)[:, :: -1 if mirrored else 1]
    return (np.ascontiguousarray(pixels.transpose(2, 0, 1)) / 255).astype(np.float32)
