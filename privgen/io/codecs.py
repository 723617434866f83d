"""How image files are coded, and samples become files that are coded like their source and say the same.

Sources: PNG specification, third edition (W3C, 2025), sections 5 and 11; JPEG (ITU-T T.81, 1992), annex B; TIFF 6.0
(Adobe, 1992), section 2.
"""

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from privgen.io.exif import MARK
from privgen.io.images_16bit import encode_png, encode_tiff
from privgen.io.metadata import Metadata, photoshop_resources, raw_profile_text, webp_chunks


QUALITY = 95
"""Quality of lossy files whose source had no JPEG tables."""

_PNG_HEADER = 8 + 25  # signature and IHDR chunk, in bytes
_FULL, _HALF = 0, 2  # resolution of colour in JPEG files, as Pillow numbers it
_SUBSAMPLINGS = {(1, 1): _FULL, (2, 1): 1, (2, 2): _HALF}  # by how much more often lightness is sampled


@dataclass(frozen=True)
class Coding:
    """How a file is coded, beyond its format.

    Attributes:
        tables: quantisation tables of a JPEG file: one for a grey image, else one for each of Y, Cb and Cr.
        subsampling: resolution of the colours of a JPEG file: 0 full, 1 half across, 2 half across and down.
        progressive: whether a JPEG file shows itself coarsely first.
        lossless: whether a WebP file has lost nothing.
    """

    tables: tuple[tuple[int, ...], ...] = ()
    subsampling: int = _FULL
    progressive: bool = False
    lossless: bool = False


def read_coding(image: Image.Image, path: Path | None = None) -> Coding:
    """Read how a file is coded.

    Args:
        image: the file, opened by Pillow.
        path: the file.
    """
    if image.format == "WEBP" and path is not None:
        return Coding(lossless="VP8L" in webp_chunks(path))
    if image.format not in ("JPEG", "MPO"):
        return Coding()
    progressive = bool(image.info.get("progressive"))
    layers, tables = getattr(image, "layer", []), getattr(image, "quantization", {})
    coded = {"L": 1, "RGB": 3}.get(image.mode)
    is_rgb = image.info.get("adobe_transform", 1) == 0 and coded == 3  # tables for red, green and blue
    if len(layers) != coded or is_rgb or any(layer[3] not in tables for layer in layers):
        return Coding(progressive=progressive)
    subsampling = _FULL
    if coded == 3 and layers[1][1:3] == layers[2][1:3] == (1, 1):
        subsampling = _SUBSAMPLINGS.get(tuple(layers[0][1:3]), _FULL)
    return Coding(tuple(tuple(tables[layer[3]]) for layer in layers), subsampling, progressive)


def encode(
    samples: NDArray[Any], kind: str, metadata: Metadata, coding: Coding | None = None, quality: int | None = None
) -> bytes:
    """Encode samples as a file in memory.

    Args:
        samples: (height, width, channels) of uint8, or of uint16 for PNG and TIFF: grey, grey and alpha, RGB or RGBA.
        kind: format of the file: "PNG", "JPEG", "WEBP", "AVIF", "HEIF", "TIFF" or "BMP".
        metadata: what the file says; what its format cannot hold is left out.
        coding: how the source was coded.
        quality: 1..100 for JPEG, WebP, AVIF and HEIC; 100 makes WebP lossless. None codes like the source.

    Raises:
        OSError, ValueError, struct.error: the format cannot hold the size or the metadata of the image.
    """
    coding, said = coding or Coding(), metadata.only_for(kind)
    if kind == "TIFF":
        return encode_tiff(samples, said)
    if kind == "PNG":
        data = encode_png(samples) if samples.dtype == np.uint16 else _saved(samples, kind, {})
        return data[:_PNG_HEADER] + b"".join(_png_chunks(said)) + data[_PNG_HEADER:]
    options = said.info()
    if kind == "JPEG":
        options |= _jpeg_options(coding, quality, grey=samples.shape[2] == 1)
        if said.iptc:
            options["extra"] = _segment(0xED, b"Photoshop 3.0\0" + photoshop_resources(said.iptc))
    elif kind == "WEBP":
        lossless = quality == 100 or (quality is None and coding.lossless)
        options |= {"quality": quality or (100 if lossless else QUALITY), "lossless": lossless, "exact": True}
    elif kind == "AVIF":
        options |= {"quality": quality or QUALITY}
        if samples.shape[2] > 2:
            options["subsampling"] = "4:4:4"
    elif kind == "HEIF":
        options |= {"quality": quality or QUALITY, "chroma": 444}
    return _saved(samples, kind, options)


def _saved(samples: NDArray[np.uint8], kind: str, options: dict[str, Any]) -> bytes:
    file = io.BytesIO()
    image = Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)
    image.save(file, format=kind, **options)
    return file.getvalue()


def _jpeg_options(coding: Coding, quality: int | None, *, grey: bool) -> dict[str, Any]:
    options: dict[str, Any] = {"progressive": True} if coding.progressive else {}
    if quality is None and len(coding.tables) == (1 if grey else 3):
        shared = coding.tables[1:2] == coding.tables[2:3]  # one table for both colours, as nearly everywhere
        tables = coding.tables[:2] if shared else coding.tables
        return options | {"qtables": list(tables), "subsampling": coding.subsampling}
    quality = quality or QUALITY
    return options | {"quality": quality, "subsampling": _FULL if quality >= 90 else _HALF}


def _segment(marker: int, data: bytes) -> bytes:
    """A segment of a JPEG file."""
    if len(data) > 65533:
        raise ValueError("IPTC data is too long")
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def _png_chunks(metadata: Metadata) -> list[bytes]:
    """The chunks of a PNG file that hold metadata, in an order that the specification allows."""
    chunks = []
    if metadata.icc_profile:
        chunks.append(_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc_profile)))
    if metadata.dpi:
        metres = (int(dpi / 0.0254 + 0.5) for dpi in metadata.dpi)
        chunks.append(_chunk(b"pHYs", struct.pack(">IIB", *metres, 1)))
    if metadata.exif:
        chunks.append(_chunk(b"eXIf", metadata.exif.removeprefix(MARK)))
    if metadata.xmp:
        chunks.append(_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + metadata.xmp))
    text = dict(metadata.text)
    if metadata.comment:
        text["Comment"] = metadata.comment.decode("utf-8", "replace")
    if metadata.iptc:
        text["Raw profile type iptc"] = raw_profile_text("iptc", photoshop_resources(metadata.iptc))
    return chunks + [_text_chunk(keyword, content) for keyword, content in text.items()]


def _text_chunk(keyword: str, text: str) -> bytes:
    """A chunk of Latin-1 text where that is enough, because more programs read it, else of UTF-8 text."""
    name = keyword.encode("latin-1", "replace")
    try:
        return _chunk(b"tEXt", name + b"\0" + text.encode("latin-1"))
    except UnicodeEncodeError:
        return _chunk(b"iTXt", name + b"\0\0\0\0\0" + text.encode())


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
