"""Read image files as upright RGB tensors, and write them back as they were: size, mode, precision and metadata.

Pixels stay in the colour space of their file, whose profile is kept beside them. So a pixel that no method changes is
written back as it was read. Only CMYK and Lab become sRGB.
"""

import io
import os
import re
import struct
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from privgen.errors import PrivgenError, shortened
from privgen.io import image_modes
from privgen.io.codecs import Coding, encode, read_coding
from privgen.io.files import HEIF_PACKAGE, MAX_PIXELS, RAW_SUFFIXES, refuse_existing, write_bytes
from privgen.io.images_16bit import is_16bit_colour, read_16bit
from privgen.io.metadata import Keeping, Metadata, read_metadata
from privgen.io.pixels import floats, levels_of, luma


SAVE_FORMATS = {".png": "PNG", ".webp": "WEBP", ".bmp": "BMP", ".avif": "AVIF", ".heic": "HEIF", ".heif": "HEIF"}
SAVE_FORMATS |= dict.fromkeys((".jpg", ".jpeg", ".jpe"), "JPEG") | dict.fromkeys((".tif", ".tiff"), "TIFF")
"""Name that Pillow gives a format, by the suffix of the file to write."""

_READ_FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "TIFF", "BMP", "GIF", "AVIF", "JPEG2000", "PPM", "HEIF")
_READABLE = "PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000 or PPM"
# What decoders raise for files that are damaged, or not what they claim to be.
_DECODE_ERRORS = (OSError, SyntaxError, ValueError, EOFError, LookupError, RuntimeError, struct.error, zlib.error)

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")

_STRIP = 256  # rows that are rounded at a time

_Integer = TypeVar("_Integer", np.uint8, np.uint16)


@dataclass(frozen=True, eq=False, repr=False)
class LoadedImage:
    """An image, with all that its file needs to come back as it was.

    Attributes:
        stored: (3, height, width), upright: samples as in the file, uint8 or uint16, or floats in [0, 1]. The three
            channels of a grey image are equal. `pixels` are the same as floats.
        alpha: (1, height, width) float32 in [0, 1], or None for an opaque image.
        grey: whether the file is greyscale. It is saved as greyscale too, by luma.
        bits: precision of a channel in the file, 8 or 16.
        mode: mode of the file in the terms of Pillow, such as "RGB", "P" or "CMYK".
        format: format of the file in the terms of Pillow; None for an image that was never a file.
        metadata: what the file says beside its pixels.
        coding: how the file is coded, beyond its format.
        notes: what the user should know, such as that only the first frame of an animation was read.
    """

    stored: torch.Tensor
    alpha: torch.Tensor | None = None
    grey: bool = False
    bits: int = 8
    mode: str = "RGB"
    format: str | None = None
    metadata: Metadata = field(default_factory=Metadata)
    coding: Coding = field(default_factory=Coding)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check the shapes."""
        shape = tuple(self.stored.shape)
        if len(shape) != 3 or shape[0] != 3:
            raise ValueError(f"expected pixels of shape (3, height, width), got {shape}")
        if self.alpha is not None and tuple(self.alpha.shape) != (1, *shape[1:]):
            raise ValueError(f"expected alpha of shape {(1, *shape[1:])}, got {tuple(self.alpha.shape)}")

    @property
    def height(self) -> int:
        """Rows."""
        return self.stored.shape[1]

    @property
    def width(self) -> int:
        """Columns."""
        return self.stored.shape[2]

    @property
    def pixels(self) -> torch.Tensor:
        """Pixels (3, height, width), float32 in [0, 1]. Samples become floats each time that you ask."""
        return floats(self.stored)

    def at_levels(self, levels: int | None) -> torch.Tensor:
        """Return the samples if their scale has that many steps, such as 255; else the pixels as floats."""
        return self.stored if levels is not None and levels_of(self.stored) == levels else self.pixels

    def with_pixels(self, pixels: torch.Tensor) -> "LoadedImage":
        """Return the same image with other pixels. If these have another size, transparency is dropped.

        Args:
            pixels: (3, height, width), floats in [0, 1] or samples.
        """
        kept = self.alpha if pixels.shape[1:] == self.stored.shape[1:] else None
        return replace(self, stored=pixels, alpha=kept)

    def __repr__(self) -> str:
        alpha = ", alpha" if self.alpha is not None else ""
        kind = f"{self.format or 'no file'}, {self.mode}, {self.bits} bits{alpha}"
        return f"LoadedImage({self.width} x {self.height}, {kind}, notes={self.notes})"


def load_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> LoadedImage:
    """Read an image file and turn it upright by its EXIF orientation.

    Args:
        path: a PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000 or PPM file; HEIC with the package pi-heif or
            pillow-heif. Of several frames the first is read.
        max_pixels: largest number of pixels to decode. A small file can claim billions, and then fills the memory.

    Raises:
        PrivgenError: the path is no file, or the file is no image, damaged, or of a size outside the limits.
    """
    path = Path(path)
    try:
        if not path.is_file():
            raise PrivgenError(f"{path} {'is not a file' if path.exists() else 'does not exist'}; check the path.")
        if path.suffix.lower() in RAW_SUFFIXES:  # Pillow would read the small preview in it
            raise PrivgenError(f"{path} is a camera's raw file; develop it, and take the TIFF or JPEG file.")
        formats = _readable()
        with warnings.catch_warnings(), _pillow_allows(max_pixels):
            # Instead of the warnings of Pillow there are errors and notes. Sizes are checked before decoding.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            with Image.open(path, formats=formats) as image:
                image_modes.check_size(image.size, str(path), max_pixels)
                return _from_pil(image, str(path), path)
    except Image.DecompressionBombError as error:
        claimed = re.search(r"\d+", str(error))  # Pillow opens no such file, so only its message has the number
        size = "" if claimed is None else f", {int(claimed.group()):,} where {max_pixels:,} are allowed"
        raise PrivgenError(
            f"{path} has more pixels than can be decoded safely{size}; make it smaller, or raise --max-pixels."
        ) from error
    except UnidentifiedImageError as error:
        raise PrivgenError(f"{path} {_why_not(path)}") from error
    except PermissionError as error:
        raise PrivgenError(f"{path} may not be read: permission denied; change its permissions.") from error
    except MemoryError as error:
        raise PrivgenError(f"{path} does not fit into memory; make it smaller.") from error
    except _DECODE_ERRORS as error:
        raise PrivgenError(f"{path} is damaged or cut short ({shortened(error)}); get a complete copy.") from error


def image_size(path: str | os.PathLike[str]) -> tuple[int, int] | None:
    """Return height and width of an image file as it lies in the file, without decoding it; None if it is unreadable.

    Args:
        path: an image file. Its EXIF orientation is not applied.
    """
    with warnings.catch_warnings(), suppress(OSError, Image.DecompressionBombError, *_DECODE_ERRORS):
        warnings.simplefilter("ignore")
        with Image.open(path, formats=_readable()) as image:
            return image.height, image.width
    return None


def _readable() -> tuple[str, ...]:
    """Pillow's names of the formats that are read, if they are there."""
    _init_formats()
    return tuple(name for name in _READ_FORMATS if name in Image.OPEN)


def from_pil(image: Image.Image, *, name: str = "image") -> LoadedImage:
    """Make a `LoadedImage` of a Pillow image, as `load_image` does of a file.

    Args:
        image: an image of any mode. Colours that Pillow opened from a 16-bit file have 8 bits already.
        name: name of the image, for messages.

    Raises:
        PrivgenError: the size is outside the limits, or the mode does not mean colours.
    """
    image_modes.check_size(image.size, name, image.width * image.height)
    return _from_pil(image, name)


def from_bytes(data: bytes) -> LoadedImage:
    """Decode a file of at most 8 bits a channel that `encode_image` has made.

    Args:
        data: content of the file.
    """
    _init_formats()
    with _pillow_allows(sys.maxsize), Image.open(io.BytesIO(data)) as image:
        return from_pil(image)


def is_lossy(path: Path) -> bool:
    """Whether a file of that name may hold other pixels than those that were written."""
    return SAVE_FORMATS.get(path.suffix.lower()) in ("JPEG", "WEBP", "AVIF", "HEIF")


def can_write(suffix: str) -> bool:
    """Whether images can be written in the format of a suffix.

    AVIF depends on how Pillow was built; HEIC needs the package pillow-heif.
    """
    _init_formats()
    return SAVE_FORMATS.get(suffix.lower()) in Image.SAVE


def refuse_unwritable(path: Path) -> None:
    """Check that an image can be written in the format of a path's suffix.

    Raises:
        PrivgenError: it cannot; the message names what is missing.
    """
    if not can_write(path.suffix):
        heic = path.suffix.lower() in (".heic", ".heif")
        missing = "pip install pillow-heif" if heic else "install a Pillow that writes the format"
        raise PrivgenError(f"{path} cannot be written here; {missing}, or choose another suffix, such as .png.")


def to_pil(image: LoadedImage | torch.Tensor) -> Image.Image:
    """Make a Pillow image with 8 bits a channel, of mode L, LA, RGB or RGBA.

    Args:
        image: a loaded image, or pixels (3, height, width): floats in [0, 1], those outside are clipped; or samples.
    """
    loaded = image if isinstance(image, LoadedImage) else LoadedImage(image)
    return _pil_of(_samples_of(loaded, np.uint8))


def save_image(
    image: LoadedImage | torch.Tensor,
    path: str | os.PathLike[str],
    *,
    like: LoadedImage | None = None,
    overwrite: bool = False,
    quality: int | None = None,
    metadata: Keeping = "keep",
) -> Path:
    """Write an image file whole or not at all, in the format of its suffix.

    Args:
        image: a loaded image, or pixels (3, height, width): floats in [0, 1], those outside are clipped; or samples.
        path: a path that ends in .png, .jpg, .jpeg, .jpe, .webp, .avif, .heic, .heif, .tif, .tiff or .bmp.
            Missing folders are made.
        like: take alpha, greyness, precision, metadata and coding from this image; by default from `image`.
        overwrite: replace an existing file instead of refusing.
        quality: see `encode_image`.
        metadata: "keep", "strip" or "private"; see `privgen.io.metadata.Metadata.filtered`.

    Returns:
        The path.

    Raises:
        PrivgenError: the path exists or cannot be written, or its format cannot hold the image.
    """
    target = Path(path)
    kind = SAVE_FORMATS.get(target.suffix.lower())
    if kind is None:
        raise PrivgenError(f"{target} has no suffix of an image to write; use one of {', '.join(SAVE_FORMATS)}.")
    refuse_unwritable(target)
    refuse_existing(target, overwrite=overwrite)
    loaded = image if isinstance(image, LoadedImage) else LoadedImage(image)
    if like is not None:
        loaded = replace(like, stored=loaded.stored)
    if loaded.stored.is_floating_point() and not bool(loaded.stored.isfinite().all()):
        raise PrivgenError(f"{target} was not written: its pixels are NaN or infinite; use a wider dtype.")
    loaded = replace(loaded, metadata=loaded.metadata.filtered(metadata))
    try:
        data = encode_image(loaded, kind, quality=quality)
    except (OSError, ValueError, struct.error) as error:
        raise PrivgenError(f"{target} cannot be written as {kind} ({error}); choose another suffix.") from error
    write_bytes(target, data, overwrite=overwrite)
    return target


def encode_image(image: LoadedImage, kind: str, *, quality: int | None = None) -> bytes:
    """Encode an image as a file in memory.

    Args:
        image: the image.
        kind: format of the file: "PNG", "JPEG", "WEBP", "AVIF", "HEIF", "TIFF" or "BMP".
        quality: 1..100 for JPEG, WebP, AVIF and HEIC; 100 makes WebP lossless. None keeps the quantisation tables and
            the resolution of the colours of a JPEG file, keeps lossless WebP lossless, and is 95 for all else.

    Raises:
        ValueError: the format cannot hold the transparency, size or metadata of the image, or its pixels are NaN or
            infinite.
    """
    if kind in ("JPEG", "BMP") and image.alpha is not None:
        if round(255 * float(image.alpha.min())) < 255:
            raise ValueError("it cannot hold transparency")
        image = replace(image, alpha=None)
    metadata = replace(image.metadata, icc_profile=_fitting_profile(image, kind))
    deep = image.bits == 16 and kind in ("PNG", "TIFF")
    samples = _samples_of(image, np.uint16) if deep else _samples_of(image, np.uint8)
    return encode(samples, kind, metadata, image.coding, quality)


@contextmanager
def _pillow_allows(max_pixels: int) -> Iterator[None]:
    """Raise the limit of Pillow, which is one for the whole process, for as long as a larger file is read."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and max_pixels > limit:
        Image.MAX_IMAGE_PIXELS = max_pixels
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _init_formats() -> None:
    """Load all formats of Pillow, and HEIC where a package for it is there."""
    Image.init()
    if HEIF_PACKAGE is not None:
        import_module(HEIF_PACKAGE).register_heif_opener()


def _from_pil(image: Image.Image, name: str, path: Path | None = None) -> LoadedImage:
    """Take over an image. `path` is its file, if it has one."""
    notes = image_modes.frame_notes(image)
    with suppress(*_DECODE_ERRORS):  # damaged EXIF data costs only itself: Pillow does not try to read it again
        image.getexif()
    deep = path is not None and is_16bit_colour(path, image)
    if path is not None and deep:
        samples, mode_notes = read_16bit(path, image)
    else:
        image.load()
        samples, mode_notes = image_modes.samples_of(image, name)
    metadata, metadata_notes = read_metadata(image, path)
    native = samples.astype(samples.dtype.newbyteorder("="), copy=False)
    planes = torch.from_numpy(np.require(native, requirements=["C", "W"])).permute(2, 0, 1)
    channels = planes.shape[0]
    return LoadedImage(
        stored=planes[:3] if channels >= 3 else planes[:1].expand(3, -1, -1),
        alpha=floats(planes[-1:]) if channels in (2, 4) else None,
        grey=channels <= 2,
        bits=8 * samples.itemsize,
        mode=image.mode,
        format=image.format,
        metadata=metadata,
        coding=read_coding(image, path),
        notes=(*notes, *metadata_notes, *mode_notes),
    )


def _why_not(path: Path) -> str:
    """Why Pillow does not know a file, as the end of a sentence."""
    with path.open("rb") as file:
        head = file.read(16)
    if not head:
        return "is empty; convert it to PNG or JPEG."
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF_BRANDS:
        return "is a HEIC file; pip install 'privgen[heif]' to read it, or convert it to PNG or JPEG."
    if image_modes.tiff_bits(path) > 16:
        return "has 32-bit samples, whose range is unknown; convert it to 8 or 16 bits a channel."
    return f"is not an image in {_READABLE}; convert it to PNG or JPEG."


def _samples_of(image: LoadedImage, kind: type[_Integer]) -> NDArray[_Integer]:
    """Round to the samples (height, width, channels) that go into a file."""
    levels, stored = int(np.iinfo(kind).max), image.stored.detach().cpu()
    if levels_of(stored) == levels and not image.grey and image.alpha is None:
        return np.ascontiguousarray(stored.permute(1, 2, 0).numpy())
    channels = (1 if image.grey else 3) + (image.alpha is not None)
    samples = np.empty((image.height, image.width, channels), kind)
    for top in range(0, image.height, _STRIP):  # so that a large photograph needs little more memory than itself
        rows = floats(stored[:, top : top + _STRIP])
        if image.grey:
            rows = luma(rows)
        if image.alpha is not None:
            rows = torch.cat([rows, image.alpha[:, top : top + _STRIP].to("cpu", torch.float32)])
        if not bool(rows.isfinite().all()):
            raise ValueError("expected finite pixels, got NaN or infinity")
        samples[top : top + _STRIP] = rows.clamp(0, 1).mul_(levels).round_().permute(1, 2, 0).numpy()
    return samples


def _pil_of(samples: NDArray[np.uint8]) -> Image.Image:
    return Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)


def _fitting_profile(image: LoadedImage, kind: str) -> bytes | None:
    """Return the colour profile if it is for the channels that the file will have."""
    grey = image.grey and kind != "WEBP"  # WebP always stores RGB
    profile = image.metadata.icc_profile or b""
    return profile if profile[16:20] == (b"GRAY" if grey else b"RGB ") else None
