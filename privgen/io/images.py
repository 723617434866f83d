"""User images in and out: upright RGB tensors for the methods, and files that come back as they were.

Pixels stay in the colour space of the file (its profile is kept beside them), so that what a method leaves alone is
written back as it was read. CMYK, which no method works on, becomes sRGB through its profile.
"""

import io
import os
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from privgen.errors import PrivgenError
from privgen.io import image_modes
from privgen.io.files import refuse_existing, write_bytes
from privgen.io.images_16bit import encode_png, encode_tiff, is_16bit_colour, read_16bit
from privgen.io.pixels import luma


MAX_PIXELS = 89_478_485
"""Pillow's own bound on what it decodes without a warning: 256 MiB of RGB."""

SAVE_FORMATS = {".png": "PNG", ".webp": "WEBP", ".bmp": "BMP"}
SAVE_FORMATS |= dict.fromkeys((".jpg", ".jpeg", ".jpe"), "JPEG") | dict.fromkeys((".tif", ".tiff"), "TIFF")
"""Suffix of a file to write: Pillow's name of its format."""

_READ_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM")
_READABLE = "PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000 or PPM"
# What Pillow's decoders raise for files that are damaged or not what they claim to be.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, RuntimeError, struct.error, zlib.error)


@dataclass(frozen=True, eq=False, repr=False)
class LoadedImage:
    """An image for the methods, with what its file needs to come back as it was.

    Attributes:
        pixels: (3, height, width) float32 in [0, 1], upright; grey images hold three equal channels.
        alpha: (1, height, width) float32 in [0, 1], or None for an opaque image.
        grey: whether the file is greyscale; it is saved as such, by luminance.
        bits: 8 or 16, the precision of a channel in the file.
        mode: Pillow's mode of the file, such as "RGB", "P" or "CMYK".
        format: Pillow's name of the file's format, None for an image that was never a file.
        icc_profile: colour profile that the pixels are meant in.
        exif: EXIF block without the orientation, which the pixels follow already.
        notes: what a user should know, such as that only the first frame of an animation was read.
    """

    pixels: torch.Tensor
    alpha: torch.Tensor | None = None
    grey: bool = False
    bits: int = 8
    mode: str = "RGB"
    format: str | None = None
    icc_profile: bytes | None = None
    exif: bytes | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the shapes."""
        shape = tuple(self.pixels.shape)
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(f"expected pixels of shape (3, height, width), got {shape}")
        if self.alpha is not None and tuple(self.alpha.shape) != (1, *shape[1:]):
            raise ValueError(f"expected alpha of shape {(1, *shape[1:])}, got {tuple(self.alpha.shape)}")

    @property
    def height(self) -> int:
        """Rows."""
        return self.pixels.shape[1]

    @property
    def width(self) -> int:
        """Columns."""
        return self.pixels.shape[2]

    def __repr__(self) -> str:
        alpha = ", alpha" if self.alpha is not None else ""
        kind = f"{self.format or 'no file'}, {self.mode}, {self.bits} bits{alpha}"
        return f"LoadedImage({self.width} x {self.height}, {kind}, notes={self.notes})"


def load_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Read an image file, turned upright by its EXIF orientation.

    Args:
        path: PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000 or PPM; of several frames the first.
        max_pixels: most pixels to decode; a small file can claim billions.

    Raises:
        PrivgenError: not a file, not an image, damaged, or of a size outside the limits.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise PrivgenError(f"{path} {'is not a file' if path.exists() else 'does not exist'}; check the path.")
        Image.init()
        formats = tuple(name for name in _READ_FORMATS if name in Image.OPEN)
        with warnings.catch_warnings():
            # What Pillow warns of is an error or a note here; sizes are checked before anything is decoded.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            with Image.open(path, formats=formats) as image:
                image_modes.check_size(image.size, str(path), max_pixels)
                return _from_pil(image, str(path), path if is_16bit_colour(path, image) else None)
    except Image.DecompressionBombError as error:
        raise PrivgenError(f"{path} has more pixels than can be decoded safely; make it smaller.") from error
    except UnidentifiedImageError as error:
        why = "is empty" if path.stat().st_size == 0 else f"is not an image in {_READABLE}"
        raise PrivgenError(f"{path} {why}; convert it to PNG or JPEG.") from error
    except PermissionError as error:
        raise PrivgenError(f"{path} may not be read: permission denied; change its permissions.") from error
    except MemoryError as error:
        raise PrivgenError(f"{path} does not fit into memory; make it smaller.") from error
    except _DECODE_ERRORS as error:
        raise PrivgenError(f"{path} is damaged or cut short ({error}); get a complete copy.") from error


def from_pil(image: Image.Image, *, name: str = "image") -> LoadedImage:
    """Take over an image that Pillow has opened or made, as `load_image` does with a file's.

    Args:
        image: any mode; colour that Pillow opened from a 16-bit file has 8 bits already.
        name: what errors call it.

    Raises:
        PrivgenError: a size outside the limits, or a mode without a meaning in colours.
    """
    image_modes.check_size(image.size, name, image.width * image.height)
    return _from_pil(image, name)


def to_pil(image: LoadedImage | torch.Tensor) -> Image.Image:
    """Make a Pillow image with 8 bits a channel: L, LA, RGB or RGBA.

    Args:
        image: a loaded image, or pixels (3, height, width) in [0, 1]; values outside are clipped.
    """
    loaded = image if isinstance(image, LoadedImage) else LoadedImage(image)
    return _pil_of(_samples_of(loaded, 8))


def save_image(
    image: LoadedImage | torch.Tensor,
    path: str | os.PathLike[str],
    *,
    like: LoadedImage | None = None,
    overwrite: bool = False,
    quality: int = 95,
) -> Path:
    """Write an image file whole or not at all, in the format of its suffix.

    Args:
        image: a loaded image, or pixels (3, height, width) in [0, 1]; values outside are clipped.
        path: ends in .png, .jpg, .jpeg, .webp, .tif, .tiff or .bmp. Missing folders are made.
        like: the image that alpha, greyness, precision, colour profile and EXIF come from; `image` itself by default.
        overwrite: replace an existing file instead of refusing.
        quality: 1..100 for JPEG and WebP; 100 makes WebP lossless.

    Returns:
        The path.

    Raises:
        PrivgenError: the path exists or cannot be written, or its format cannot hold the image.
    """
    target = Path(path)
    kind = SAVE_FORMATS.get(target.suffix.lower())
    if kind is None:
        raise PrivgenError(f"{target} has no suffix of an image to write; use one of {', '.join(SAVE_FORMATS)}.")
    refuse_existing(target, overwrite=overwrite)
    loaded = image if isinstance(image, LoadedImage) else LoadedImage(image)
    if like is not None:
        loaded = replace(like, pixels=loaded.pixels)
    if not bool(loaded.pixels.isfinite().all()):
        raise PrivgenError(f"{target} was not written: its pixels are NaN or infinite; use a wider dtype.")
    try:
        data = encode_image(loaded, kind, quality=quality)
    except (OSError, ValueError, struct.error) as error:
        raise PrivgenError(f"{target} cannot be written as {kind} ({error}); choose another suffix.") from error
    write_bytes(target, data, overwrite=overwrite)
    return target


def encode_image(image: LoadedImage, kind: str, *, quality: int = 95) -> bytes:
    """Encode an image as a file in memory.

    Args:
        image: what to encode.
        kind: "PNG", "JPEG", "WEBP", "TIFF" or "BMP".
        quality: 1..100 for JPEG and WebP; 100 makes WebP lossless.

    Raises:
        ValueError: the format cannot hold the image: transparency, size or metadata; or pixels that are not finite.
    """
    if kind in ("JPEG", "BMP") and image.alpha is not None:
        if round(255 * float(image.alpha.min())) < 255:
            raise ValueError("it cannot hold transparency")
        image = replace(image, alpha=None)
    metadata = {"icc_profile": _fitting_profile(image, kind), "exif": image.exif}
    if image.bits == 16 and kind in ("PNG", "TIFF"):
        encode = encode_png if kind == "PNG" else encode_tiff
        return encode(_samples_of(image, 16).astype(np.uint16), **metadata)
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": quality, "subsampling": 0 if quality >= 90 else 2},
        "WEBP": {"quality": quality, "lossless": quality == 100, "exact": True},
        # libtiff, which compresses, refuses the EXIF directory.
        "TIFF": {"compression": "raw" if image.exif else "tiff_deflate"},
    }
    known: dict[str, Any] = {key: value for key, value in metadata.items() if value}
    file = io.BytesIO()
    _pil_of(_samples_of(image, 8)).save(file, format=kind, **options.get(kind, {}), **known)
    return file.getvalue()


def _from_pil(image: Image.Image, name: str, deep: Path | None = None) -> LoadedImage:
    """Take over an image; `deep` is its file if that holds more bits than Pillow reads."""
    notes = image_modes.frame_notes(image)
    if deep is None:
        image.load()
    exif, exif_notes = image_modes.exif_of(image)
    samples, mode_notes = image_modes.samples_of(image, name) if deep is None else read_16bit(deep, image)
    planes = torch.from_numpy(samples.astype(np.float32) / np.iinfo(samples.dtype).max).permute(2, 0, 1).contiguous()
    channels = planes.shape[0]
    return LoadedImage(
        pixels=planes[:3] if channels >= 3 else planes[:1].repeat(3, 1, 1),
        alpha=planes[-1:] if channels in (2, 4) else None,
        grey=channels <= 2,
        bits=8 * samples.itemsize,
        mode=image.mode,
        format=image.format,
        icc_profile=image.info.get("icc_profile") or None,
        exif=exif,
        notes=(*notes, *exif_notes, *mode_notes),
    )


def _samples_of(image: LoadedImage, bits: int) -> NDArray[np.int64]:
    """Integer samples (height, width, channels) as they go into a file."""
    planes = image.pixels.detach().to("cpu", torch.float32)
    if image.grey:
        planes = luma(planes)
    if image.alpha is not None:
        planes = torch.cat([planes, image.alpha.to("cpu", torch.float32)])
    if not bool(planes.isfinite().all()):
        raise ValueError("expected finite pixels, got NaN or infinity")
    top = 2**bits - 1
    samples: NDArray[np.int64] = (planes.clamp(0, 1) * top).round().to(torch.int64).permute(1, 2, 0).numpy()
    return samples


def _pil_of(samples: NDArray[np.int64]) -> Image.Image:
    narrow = np.ascontiguousarray(samples.astype(np.uint8))
    return Image.fromarray(narrow[:, :, 0] if narrow.shape[2] == 1 else narrow)


def _fitting_profile(image: LoadedImage, kind: str) -> bytes | None:
    """The colour profile if it is one for the channels that the file will have."""
    grey = image.grey and kind != "WEBP"  # WebP stores RGB always
    profile = image.icc_profile or b""
    return profile if profile[16:20] == (b"GRAY" if grey else b"RGB ") else None
