"""Modes of Pillow: turn any opened image into plain samples."""

import io
import struct
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, ImageOps, TiffImagePlugin

from privgen.errors import PrivgenError


Samples = NDArray[np.uint8] | NDArray[np.uint16]
Notes = tuple[str, ...]

MIN_SIDE = 16
MAX_ASPECT = 50

_STRIP = 256  # rows that are copied at a time

_DEEP_GREY = frozenset({"I;16", "I;16B", "I;16L", "I;16N"})


_FRAMES = {
    "TIFF": "several pages: the first is used",
    "MPO": "several pictures: the first is used",
    "HEIF": "several pictures: the first is used",
}


def check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    """Refuse an image that is too small or too narrow to carry anything, or too large to decode.

    Args:
        size: width and height.
        name: name of the image, for messages.
        max_pixels: largest number of pixels allowed.

    Raises:
        PrivgenError: the size is outside the limits.
    """
    width, height = size
    if min(size) < MIN_SIDE:
        raise PrivgenError(f"{name} has {width} x {height} pixels; each side must have at least {MIN_SIDE}.")
    if max(size) > MAX_ASPECT * min(size):
        raise PrivgenError(f"{name} has {width} x {height} pixels; crop it to sides at most 1 : {MAX_ASPECT}.")
    if width * height > max_pixels:
        raise PrivgenError(
            f"{name} has {width} x {height} pixels, more than the {max_pixels:,} allowed; make it smaller, or "
            "raise --max-pixels."
        )


def samples_of(image: Image.Image, name: str) -> tuple[Samples, Notes]:
    """Decode an image into upright samples: grey, grey and alpha, RGB or RGBA.

    Args:
        image: an image of any mode.
        name: name of the image, for messages.

    Returns:
        Samples (height, width, channels) of uint8 or uint16 with 1 to 4 channels, and notes on what changed.

    Raises:
        PrivgenError: the samples are floating-point or 32-bit numbers, which have no agreed range.
    """
    turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    upright = ImageOps.exif_transpose(image) if turned else image  # it copies
    if upright.mode in _DEEP_GREY:
        grey = np.asarray(upright).astype(np.uint16)
        transparent = upright.info.get("transparency")
        planes = [grey] if transparent is None else [grey, np.uint16(65535) * (grey != transparent)]
        return np.stack(planes, axis=-1), ()
    if upright.mode in ("I", "F"):
        return _wide(upright, name), ()
    plain, notes = _plain(upright, name)
    samples = np.empty((plain.height, plain.width, len(plain.getbands())), np.uint8)
    for top in range(0, plain.height, _STRIP):  # Pillow copies what it hands out
        strip = np.asarray(plain.crop((0, top, plain.width, min(top + _STRIP, plain.height))))
        samples[top : top + _STRIP] = strip.reshape(len(strip), plain.width, -1)
    return samples, notes


def frame_notes(image: Image.Image) -> Notes:
    """Return notes on what of a file is not read: all frames but the first, and bits beyond the eighth."""
    notes: Notes = ()
    if getattr(image, "is_animated", False):
        notes += (_FRAMES.get(image.format or "", "animated: the first frame is used"),)
    if image.format == "HEIF" and (bits := image.info.get("bit_depth", 8)) > 8:
        notes += (f"its {bits} bits a channel become 8",)
    return notes


def tiff_bits(path: Path) -> int:
    """The largest number of bits a channel that a TIFF file claims; 0 for other files.

    Args:
        path: a file that Pillow does not open.
    """
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            head = file.read(8)
            if head[2:3] == b"+":  # BigTIFF
                head += file.read(8)
            tags = TiffImagePlugin.ImageFileDirectory_v2(head)
            file.seek(tags.next)
            tags.load(file)
            return max(int(bits) for bits in tags.get(TiffImagePlugin.BITSPERSAMPLE, (0,)))
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, OverflowError, struct.error):
        return 0


def _plain(image: Image.Image, name: str) -> tuple[Image.Image, Notes]:
    """Convert to L, LA, RGB or RGBA."""
    alpha = "A" if image.has_transparency_data else ""
    if image.mode in ("1", "L", "LA", "La"):
        return _as_mode(image, "L" + alpha), ()
    if image.mode == "CMYK":
        return _to_srgb(image), ("CMYK becomes RGB",)
    if image.mode == "LAB":
        return _to_srgb(image), ("Lab becomes RGB",)
    notes = ("palette colours become full colour",) if image.mode in ("P", "PA") else ()
    try:
        return _as_mode(image, "RGB" + alpha), notes
    except ValueError as error:
        raise PrivgenError(f"{name} has colours of the kind {image.mode}; convert it to RGB.") from error


def _as_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image itself if it has that mode: `convert` would copy it."""
    return image if image.mode == mode else image.convert(mode)


def _to_srgb(image: Image.Image) -> Image.Image:
    """Convert to sRGB through the embedded colour profile, or plainly if there is none that fits."""
    srgb = ImageCms.createProfile("sRGB")
    profile = image.info.get("icc_profile")
    try:
        source = (
            ImageCms.createProfile("LAB")
            if image.mode == "LAB"
            else ImageCms.ImageCmsProfile(io.BytesIO(profile or b""))
        )
        converted = ImageCms.profileToProfile(image, source, srgb, outputMode="RGB")
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return image.convert("RGB")
    return converted or image.convert("RGB")


def _wide(image: Image.Image, name: str) -> NDArray[np.uint16]:
    """Return 16-bit samples that Pillow holds as 32 bits, as it does for deep PGM files."""
    samples = np.asarray(image)
    if image.mode == "F" or samples.min() < 0 or samples.max() > 65535:
        raise PrivgenError(f"{name} has 32-bit samples, whose range is unknown; convert it to 8 or 16 bits a channel.")
    return samples.astype(np.uint16)[:, :, None]
