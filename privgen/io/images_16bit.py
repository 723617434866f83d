"""Colour images with 16 bits a channel, which Pillow reads as 8 bits and does not write.

tifffile reads TIFF. pypng takes PNG files apart and puts them together; their pixels go through the decoder of Pillow,
which is many times faster than that of pypng. TIFF, of 8 bits too, is written through the tags of Pillow: tifffile
writes no EXIF directory, and neither does libtiff. Greyscale, which Pillow reads at 16 bits, is written here as well.

Sources: PNG specification, third edition (W3C, 2025), sections 5, 9 and 11; TIFF 6.0 (Adobe, 1992), sections 2 and 18.
"""

import io
import math
import struct
import zlib
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import png
import tifffile
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin

from privgen.io.exif import copy_tags
from privgen.io.image_modes import Notes, Samples, samples_of
from privgen.io.metadata import Metadata


Samples16 = NDArray[np.uint16]

_PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}  # by number of channels
_PNG_CHANNELS = {colour_type: channels for channels, colour_type in _PNG_COLOUR_TYPES.items()}

_DEFLATE = (8, 32946)
_READ = (1, *_DEFLATE, 32773)  # uncompressed, deflate and PackBits
_READ_WITH_IMAGECODECS = (5, 34925, 50000)  # LZW, LZMA and Zstandard
_PREMULTIPLIED = (1,)  # kind of alpha with which colours have been multiplied
_LARGE_TILE = 4096**2
_NOTHING = Metadata()
_XMP, _IPTC = 700, 33723
_BYTE, _UNDEFINED, _INCH = 1, 7, 2  # types of tags, and a unit of resolution


def is_16bit_colour(path: Path, image: Image.Image) -> bool:
    """Whether Pillow would read fewer bits of a file than `read_16bit`.

    Args:
        path: the file.
        image: the same file, opened by Pillow but not yet decoded.
    """
    if image.format == "PNG":
        depth, channels, _ = _png_layout(path)
        return depth == 16 and channels > 1
    if image.format == "TIFF" and image.mode in ("RGB", "RGBX", "RGBA"):
        tags = image.tag_v2  # type: ignore[attr-defined] # TIFF images have it
        deep = set(tags.get(TiffImagePlugin.BITSPERSAMPLE, ())) == {16}
        return deep and tags.get(TiffImagePlugin.EXTRASAMPLES) != _PREMULTIPLIED
    return False


def read_16bit(path: Path, image: Image.Image) -> tuple[Samples, Notes]:
    """Read a colour or grey-and-alpha image of 16 bits a channel at its full precision, upright.

    Args:
        path: a file for which `is_16bit_colour` holds.
        image: the same file, opened by Pillow but not yet decoded. Check its size first: this takes memory for it.

    Returns:
        Samples (height, width, channels) in 0..65535, with 2, 3 or 4 channels, and notes for the user. Where tifffile
        lacks a package to decompress the file, the samples are what Pillow reads of it, in 0..255, and a note says so.

    Raises:
        OSError, SyntaxError, ValueError, LookupError, RuntimeError, struct.error, zlib.error: the file is damaged.
    """
    if image.format == "PNG":
        return _read_png(path, image), ()
    compression = image.tag_v2.get(TiffImagePlugin.COMPRESSION, 1)  # type: ignore[attr-defined]
    if compression not in _READ and not (compression in _READ_WITH_IMAGECODECS and find_spec("imagecodecs")):
        samples, notes = samples_of(image, str(path))
        name = TiffImagePlugin.COMPRESSION_INFO.get(compression, compression)
        return samples, (
            *notes,
            f"its 16 bits a channel become 8, because its compression ({name}) needs `pip install imagecodecs`",
        )
    return _read_tiff(path, image), ()


def encode_png(samples: Samples16) -> bytes:
    """Encode samples as a PNG file.

    Args:
        samples: (height, width, channels) in 0..65535: grey, grey and alpha, RGB or RGBA.

    Returns:
        The content of the file.
    """
    height, width, channels = samples.shape
    rows = np.ascontiguousarray(samples, dtype=">u2").view(np.uint8).reshape(height, width, 2 * channels)
    filtered = rows.copy()
    filtered[:, 1:] -= rows[:, :-1]  # filter type 1: differences to the pixel on the left, modulo 256
    lines = np.concatenate([np.ones((height, 1), np.uint8), filtered.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOUR_TYPES[channels], 0, 0, 0)
    file = io.BytesIO()
    png.write_chunks(file, [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b"")])
    return file.getvalue()


def encode_tiff(samples: Samples, metadata: Metadata = _NOTHING) -> bytes:
    """Encode samples as a TIFF file: deflated with 8 bits a channel, uncompressed with 16.

    Args:
        samples: (height, width, channels) of uint8 or uint16: grey, grey and alpha, RGB or RGBA.
        metadata: what the file says.

    Returns:
        The content of the file. Grey with alpha of 16 bits becomes RGBA, which more programs read.
    """
    deep = samples.dtype == np.uint16
    if deep and samples.shape[2] == 2:
        samples = samples[:, :, [0, 0, 0, 1]]
    height, width, channels = samples.shape
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    if metadata.exif:
        block = Image.Exif()
        block.load(metadata.exif)
        copy_tags(block, tags)
    if metadata.dpi:
        tags[TiffImagePlugin.X_RESOLUTION], tags[TiffImagePlugin.Y_RESOLUTION] = metadata.dpi
        tags[TiffImagePlugin.RESOLUTION_UNIT] = _INCH
    data = samples.astype("<u2").tobytes() if deep else zlib.compress(samples.tobytes(), 6)
    tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH] = width, height
    tags[TiffImagePlugin.BITSPERSAMPLE] = (8 * samples.itemsize,) * channels
    tags[TiffImagePlugin.COMPRESSION] = 1 if deep else _DEFLATE[0]
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 1 if channels <= 2 else 2
    tags[TiffImagePlugin.SAMPLESPERPIXEL] = channels
    tags[TiffImagePlugin.ROWSPERSTRIP] = height
    tags.tagtype[TiffImagePlugin.STRIPBYTECOUNTS] = 4  # LONG
    tags[TiffImagePlugin.STRIPOFFSETS] = (0,)  # save() adds the length of the tags
    tags[TiffImagePlugin.STRIPBYTECOUNTS] = (len(data),)
    if channels in (2, 4):
        tags[TiffImagePlugin.EXTRASAMPLES] = (2,)  # alpha that the colours are not multiplied with
    blocks = {TiffImagePlugin.ICCPROFILE: metadata.icc_profile, _XMP: metadata.xmp, _IPTC: metadata.iptc}
    for tag, content in blocks.items():
        if content:
            tags.tagtype[tag] = _BYTE if tag == _XMP else _UNDEFINED
            tags[tag] = content
    file = io.BytesIO()
    tags.save(file)
    return file.getvalue() + data


def _png_layout(path: Path) -> tuple[int, int, int]:
    """Bits a channel, channels (0 for a palette), and whether the rows are interlaced."""
    with path.open("rb") as file:
        depth, colour_type, _, _, interlaced = file.read(29)[24:]
    return depth, _PNG_CHANNELS.get(colour_type, 0), interlaced


def _read_png(path: Path, image: Image.Image) -> Samples16:
    _, channels, interlaced = _png_layout(path)
    try:
        with path.open("rb") as file:
            data = b"".join(content for name, content in png.Reader(file=file).chunks() if name == b"IDAT")
    except png.Error as error:
        raise OSError(str(error)) from error

    def unpacked(mode: str, raw_mode: str) -> NDArray[np.uint8]:
        return np.asarray(Image.frombytes(mode, image.size, data, "zip", raw_mode, interlaced))

    if channels == 2:
        # Two samples are four bytes, and RGBA is the mode whose bytes Pillow hands over as they are.
        samples = np.ascontiguousarray(unpacked("RGBA", "RGBA")).view(">u2").astype(np.uint16)
    else:
        mode = "RGBA" if channels == 4 else "RGB"
        # Both byte orders: the one takes the high byte of each sample, the other the low byte.
        high, low = (unpacked(mode, f"{mode};16{order}").astype(np.uint16) for order in "BL")
        samples = (high << np.uint16(8)) | low
        transparent = image.info.get("transparency")
        if channels == 3 and transparent is not None:
            opaque = (samples != np.array(transparent)).any(axis=2, keepdims=True)
            samples = np.concatenate([samples, np.uint16(65535) * opaque], axis=2)
    return _upright(samples, image.getexif().get(ExifTags.Base.Orientation, 1))


def _read_tiff(path: Path, image: Image.Image) -> Samples16:
    try:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            _check_tiff(page, image)
            samples = page.asarray()
    except (AssertionError, AttributeError, TypeError, ArithmeticError) as error:  # what tifffile does with nonsense
        raise OSError(str(error)) from error
    if page.planarconfig == tifffile.PLANARCONFIG.SEPARATE:
        samples = np.moveaxis(samples, 0, 2)
    channels = 4 if image.mode == "RGBA" else 3
    return _upright(samples[:, :, :channels], page.tags.valueof(ExifTags.Base.Orientation, 1))


def _check_tiff(page: tifffile.TiffPage, image: Image.Image) -> None:
    """Make sure, before anything is decoded, that a page takes no more memory than the size of the image says."""
    if math.prod(page.shape) not in (3 * image.width * image.height, 4 * image.width * image.height):
        raise ValueError("its sizes contradict each other")
    segment = math.prod(page.chunks)
    if page.dtype != np.uint16 or segment > max(math.prod(page.shape), _LARGE_TILE):
        raise ValueError("its tiles are too large")
    if page.compression not in _DEFLATE:
        return
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        page.parent.filehandle.seek(offset)
        limit = 2 * 2 * segment  # some programs fill the last strip up
        if len(zlib.decompressobj().decompress(page.parent.filehandle.read(count), limit + 1)) > limit:
            raise ValueError("a strip holds more than its part of the image")


def _upright(samples: Samples16, orientation: int) -> Samples16:
    """Turn samples upright by their EXIF orientation, 1..8."""
    if orientation in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if orientation in (3, 4, 7, 8):
        samples = samples[::-1]
    if orientation in (2, 3, 6, 7):
        samples = samples[:, ::-1]
    return samples
