"""Colour images with 16 bits a channel.

Pillow reads them as 8 bits and writes none. What is missing is small: its decoders can be asked for the high and for
the low bytes, and PNG and TIFF files without frills are a few tags around compressed or plain samples. Greyscale goes
the same way out, so that there is one.

Sources: PNG specification, third edition (W3C, 2025), sections 5, 9 and 11; TIFF 6.0 (Adobe, 1992), sections 2 and 18.
"""

import io
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin


Samples16 = NDArray[np.uint16]

# Raw mode of the file -> raw mode that unpacks the other byte of each sample (16N: in the order of this machine).
_OTHER_BYTE = {"16B": "16L", "16L": "16B", "16N": "16B" if sys.byteorder == "little" else "16L"}
_PNG_COLOUR_TYPES = {1: 0, 2: 4, 3: 2, 4: 6}
_GPS, _EXIF = 34853, 34665


def is_16bit_colour(image: Image.Image) -> bool:
    """Whether a file that Pillow has opened, but not yet decoded, holds what `read` reads."""
    kind, _, depth = _raw_mode(image).partition(";")
    return depth in _OTHER_BYTE and kind in ("LA", "RGB", "RGBX", "RGBA")


def read(path: Path, formats: tuple[str, ...]) -> Samples16:
    """Read a colour or grey-and-alpha image of 16 bits a channel at its full precision, upright.

    Args:
        path: a file for which `is_16bit_colour` holds.
        formats: Pillow's names of the formats to try.

    Returns:
        Samples (height, width, channels) in 0..65535, with 2, 3 or 4 channels.

    Raises:
        OSError, SyntaxError, ValueError: whatever Pillow raises for a file that it cannot decode.
    """
    with Image.open(path, formats=formats) as image, Image.open(path, formats=formats) as other:
        kind, _, depth = _raw_mode(image).partition(";")
        if kind == "LA":
            # Four bytes a pixel either way, and RGBA is the mode whose bytes Pillow hands over as they are.
            _set_raw_mode(image, "LA;16B", "RGBA")
            pairs = np.ascontiguousarray(ImageOps.exif_transpose(image))
            return pairs.view(">u2").astype(np.uint16)
        _set_raw_mode(other, depth, _OTHER_BYTE[depth])
        high, low = (np.asarray(ImageOps.exif_transpose(half)).astype(np.uint16) for half in (image, other))
    samples: Samples16 = (high << np.uint16(8)) | low
    return samples


def encode_png(samples: Samples16, *, icc_profile: bytes | None = None, exif: bytes | None = None) -> bytes:
    """Encode as PNG.

    Args:
        samples: (height, width, channels): grey, grey and alpha, RGB or RGBA, 0..65535.
        icc_profile: colour profile.
        exif: EXIF block, with or without its leading "Exif" mark.

    Returns:
        The file.
    """
    height, width, channels = samples.shape
    rows = np.ascontiguousarray(samples, dtype=">u2").view(np.uint8).reshape(height, width, 2 * channels)
    filtered = rows.copy()
    filtered[:, 1:] -= rows[:, :-1]  # filter type 1: differences to the pixel on the left, modulo 256
    lines = np.concatenate([np.ones((height, 1), np.uint8), filtered.reshape(height, -1)], axis=1)
    header = struct.pack(">IIBBBBB", width, height, 16, _PNG_COLOUR_TYPES[channels], 0, 0, 0)
    chunks = [(b"IHDR", header)]
    if icc_profile:
        chunks.append((b"iCCP", b"ICC profile\0\0" + zlib.compress(icc_profile)))
    if exif:
        chunks.append((b"eXIf", exif.removeprefix(b"Exif\0\0")))
    chunks += [(b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(_png_chunk(name, data) for name, data in chunks)


def encode_tiff(samples: Samples16, *, icc_profile: bytes | None = None, exif: bytes | None = None) -> bytes:
    """Encode as TIFF, uncompressed.

    Args:
        samples: (height, width, channels): grey, grey and alpha, RGB or RGBA, 0..65535.
        icc_profile: colour profile.
        exif: EXIF block.

    Returns:
        The file. Grey with alpha is written as RGBA, which more programs read.
    """
    if samples.shape[2] == 2:
        samples = samples[:, :, [0, 0, 0, 1]]
    height, width, channels = samples.shape
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    _copy_exif(exif, tags)
    data = samples.astype("<u2").tobytes()
    tags[TiffImagePlugin.IMAGEWIDTH], tags[TiffImagePlugin.IMAGELENGTH] = width, height
    tags[TiffImagePlugin.BITSPERSAMPLE] = (16,) * channels
    tags[TiffImagePlugin.COMPRESSION] = 1
    tags[TiffImagePlugin.PHOTOMETRIC_INTERPRETATION] = 1 if channels == 1 else 2
    tags[TiffImagePlugin.SAMPLESPERPIXEL] = channels
    tags[TiffImagePlugin.ROWSPERSTRIP] = height
    tags.tagtype[TiffImagePlugin.STRIPBYTECOUNTS] = 4  # LONG
    tags[TiffImagePlugin.STRIPOFFSETS] = (0,)  # moved behind the tags by save()
    tags[TiffImagePlugin.STRIPBYTECOUNTS] = (len(data),)
    if channels == 4:
        tags[TiffImagePlugin.EXTRASAMPLES] = (2,)  # alpha that the colours are not multiplied with
    if icc_profile:
        tags[TiffImagePlugin.ICCPROFILE] = icc_profile
    file = io.BytesIO()
    tags.save(file)
    return file.getvalue() + data


def _raw_mode(image: Image.Image) -> str:
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _set_raw_mode(image: Image.Image, old: str, new: str) -> None:
    tiles = []
    for tile in image.tile:  # type: ignore[attr-defined]
        if isinstance(tile.args, tuple):
            arguments: object = (str(tile.args[0]).replace(old, new), *tile.args[1:])
        else:
            arguments = tile.args.replace(old, new)
        tiles.append(tile._replace(args=arguments))
    image.tile = tiles  # type: ignore[attr-defined]


def _copy_exif(exif: bytes | None, tags: TiffImagePlugin.ImageFileDirectory_v2) -> None:
    if not exif:
        return
    block = Image.Exif()
    block.load(exif)
    for tag, value in block.items():
        tags[tag] = block.get_ifd(tag) if tag in (_EXIF, _GPS) else value


def _png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
