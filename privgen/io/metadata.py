"""What an image file says beside its pixels: EXIF, XMP, IPTC, colour profile, comment, resolution and text.

It is read here from any format, filtered, and handed to the encoders of `privgen.io.codecs`.

Sources: XMP specification part 3 (Adobe, 2020); IPTC-NAA IIM 4.2; PNG specification, third edition (W3C, 2025);
C2PA 2.1 (2024), section "Embedding manifests into various file formats".
"""

import re
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from PIL import Image

from privgen.io.exif import PRIVATE, check_exif, edit_exif, exif_of_tiff


Keeping: TypeAlias = Literal["keep", "strip", "private"]
"""What of its metadata an image keeps: all; the colour profile only; or all but where and with what it was taken."""

KEEPINGS: tuple[Keeping, ...] = get_args(Keeping)

KINDS = ("exif", "xmp", "iptc", "icc_profile", "comment", "dpi", "text")
"""The kinds of metadata: the attributes of `Metadata`."""

HOLDS: dict[str, frozenset[str]] = {
    "PNG": frozenset(KINDS),
    "JPEG": frozenset(KINDS) - {"text"},
    "TIFF": frozenset(KINDS) - {"text", "comment"},
    "WEBP": frozenset({"exif", "xmp", "icc_profile"}),
    "AVIF": frozenset({"exif", "xmp", "icc_profile"}),
    "HEIF": frozenset({"exif", "xmp", "icc_profile"}),
    "BMP": frozenset({"dpi"}),
}
"""The kinds of metadata that are written into a format."""

CREDENTIALS_NOTE = "its Content Credentials no longer hold and were left out"

_IPTC = 0x0404  # the image resource of Photoshop that holds IPTC data
_XMP_EXTENSION = b"http://ns.adobe.com/xmp/extension/\0"
_PROVENANCE = re.compile(
    rb"""\s+dcterms:provenance=("[^"]*"|'[^']*')|<dcterms:provenance>.*?</dcterms:provenance>""", re.DOTALL
)
_C2PA_UUID = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
_C2PA_TAG = 52545
_RAW_PROFILE = "Raw profile type "
# Keywords of the PNG specification, and those that programs write what made an image under.
_PUBLIC_TEXT = frozenset(
    {"Title", "Author", "Description", "Copyright", "Creation Time", "Software", "Disclaimer", "Warning", "Comment"}
    | {"parameters", "prompt", "workflow"}
)


@dataclass(frozen=True)
class Metadata:
    """What an image file says beside its pixels.

    Attributes:
        exif: EXIF block with its mark, without orientation and thumbnail: the pixels are upright already, and the
            thumbnail would show what they were.
        xmp: XMP packet.
        iptc: IPTC data sets.
        icc_profile: colour profile of the pixels.
        comment: comment of a JPEG or GIF file.
        dpi: pixels an inch, across and down.
        text: keywords and texts of a PNG file, such as "parameters" or "workflow".
        left_out: one sentence for each thing that was in the file and cannot be kept.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    icc_profile: bytes | None = None
    comment: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: tuple[tuple[str, str], ...] = ()
    left_out: tuple[str, ...] = ()

    def filtered(self, keeping: Keeping) -> "Metadata":
        """Return the part of it that a file keeps.

        "private" removes the EXIF tags of place, owner and serial numbers, and makers' notes. XMP and IPTC are open
        to any field, so it removes them whole; of PNG text it keeps well-known keywords only.
        """
        if keeping == "keep":
            return self
        if keeping == "strip":
            return Metadata(icc_profile=self.icc_profile, left_out=self.left_out)
        text = tuple(item for item in self.text if item[0] in _PUBLIC_TEXT)
        exif = edit_exif(self.exif, PRIVATE) if self.exif else None
        return replace(self, exif=exif, xmp=None, iptc=None, text=text)

    def only_for(self, kind: str) -> "Metadata":
        """Return the part of it that a format can hold."""
        nothing = Metadata()
        return replace(self, **{name: getattr(nothing, name) for name in KINDS if name not in HOLDS[kind]})

    def info(self) -> dict[str, Any]:
        """Return it by the names that Pillow uses in `Image.info`."""
        named: dict[str, Any] = {"exif": self.exif, "xmp": self.xmp, "icc_profile": self.icc_profile}
        named |= {"comment": self.comment, "dpi": self.dpi} | dict(self.text)
        return {name: value for name, value in named.items() if value}


def read_metadata(image: Image.Image, path: Path | None = None) -> tuple[Metadata, tuple[str, ...]]:
    """Read what an image says beside its pixels.

    Args:
        image: an image, decoded already: some formats keep metadata behind the pixels.
        path: its file, which tells more than Pillow does.

    Returns:
        The metadata, and a note if a part of it is damaged.
    """
    text, notes = _text_of(image)
    profiles = {name: _raw_profile(text.pop(_RAW_PROFILE + name, "")) for name in ("exif", "iptc", "8bim", "xmp")}
    text.pop(_RAW_PROFILE + "APP1", None)
    packet = _bytes_of(text.pop("XML:com.adobe.xmp", None))
    xmp = _bytes_of(image.info.get("xmp")) or packet or profiles["xmp"]
    left_out: tuple[str, ...] = (CREDENTIALS_NOTE,) if _has_credentials(image, path, xmp) else ()
    if any(data.startswith(_XMP_EXTENSION) for _, data in getattr(image, "applist", ())):
        left_out += ("the part of its XMP data beyond 64 kB was left out",)
    exif, exif_notes = _exif_of(image, profiles["exif"])
    metadata = Metadata(
        exif=exif,
        xmp=_upright_xmp(xmp),
        iptc=_iptc_of(image) or _iptc_in(profiles["iptc"] or profiles["8bim"] or b"") or profiles["iptc"],
        icc_profile=_bytes_of(image.info.get("icc_profile")),
        comment=_bytes_of(image.info.get("comment")) or _bytes_of(text.pop("Comment", None)),
        dpi=_dpi_of(image),
        text=tuple(text.items()),
        left_out=left_out,
    )
    return metadata, (*notes, *exif_notes)


def photoshop_resources(iptc: bytes) -> bytes:
    """Wrap IPTC data sets as JPEG and PNG files hold them: as an image resource of Photoshop."""
    return b"8BIM" + struct.pack(">HHI", _IPTC, 0, len(iptc)) + iptc + b"\0" * (len(iptc) % 2)


def raw_profile_text(name: str, data: bytes) -> str:
    """Write bytes as the text of a PNG file, in the form that ImageMagick and ExifTool know."""
    digits = data.hex()
    lines = [digits[i : i + 72] for i in range(0, len(digits), 72)]
    return "\n".join(["", name, f"{len(data):8}", *lines, ""])


def _exif_of(image: Image.Image, profile: bytes | None) -> tuple[bytes | None, tuple[str, ...]]:
    try:
        block = exif_of_tiff(image) if image.format == "TIFF" else _bytes_of(image.info.get("exif")) or profile
        edited = edit_exif(block) if block else None
        if edited:
            check_exif(edited)
        return edited, ()
    except (OSError, SyntaxError, ValueError, KeyError, IndexError, TypeError, AttributeError, struct.error):
        # Cameras and editors write broken blocks, which Pillow reports in all these ways.
        return None, ("its EXIF data cannot be read and is not kept",)


def _text_of(image: Image.Image) -> tuple[dict[str, str], tuple[str, ...]]:
    if image.format != "PNG":
        return {}, ()
    # The text of an animation may stand behind its last frame, which is not worth decoding.
    found = image.info
    notes: tuple[str, ...] = ()
    if not getattr(image, "is_animated", False):
        try:
            found = getattr(image, "text", {})
        except AssertionError:  # what Pillow does with text behind the pixels that it refuses to decompress
            notes = ("its text is damaged or too long, and a part of it is not kept",)
    pairs = {name: str(text) for name, text in found.items() if isinstance(name, str) and isinstance(text, str)}
    return pairs, notes


def _bytes_of(value: object) -> bytes | None:
    if isinstance(value, str):
        value = value.encode()
    return value if isinstance(value, bytes) and value else None


def _raw_profile(text: str) -> bytes | None:
    """Bytes that a PNG file holds as text: an empty line, a name, a length, and hexadecimal digits."""
    try:
        return bytes.fromhex("".join(text.split("\n")[3:])) or None
    except ValueError:
        return None


def _upright_xmp(xmp: bytes | None) -> bytes | None:
    """Say that the pixels are upright, and name no Content Credentials elsewhere."""
    if xmp is None:
        return None
    return _PROVENANCE.sub(b"", re.sub(rb"""(tiff:Orientation(?:=["']|>))[0-9]""", rb"\g<1>1", xmp))


def _iptc_of(image: Image.Image) -> bytes | None:
    if image.format == "TIFF":
        value = image.tag_v2.get(33723)  # type: ignore[attr-defined] # TIFF images have it
        if isinstance(value, tuple) and all(isinstance(part, int) for part in value):  # as 32-bit numbers
            order = ">" if image.tag_v2.prefix == b"MM" else "<"  # type: ignore[attr-defined]
            value = struct.pack(f"{order}{len(value)}I", *value)
        resources = _bytes_of(image.tag_v2.get(34377))  # type: ignore[attr-defined]
        return _bytes_of(value) or _iptc_in(resources or b"")
    resources = image.info.get("photoshop")
    return _bytes_of(resources.get(_IPTC)) if isinstance(resources, dict) else None


def _iptc_in(resources: bytes) -> bytes | None:
    """Find the IPTC data in image resources of Photoshop."""
    at = 0
    while resources[at : at + 4] == b"8BIM" and at + 12 <= len(resources):
        (number,) = struct.unpack_from(">H", resources, at + 4)
        start = at + 6 + (1 + resources[at + 6] + 1) // 2 * 2
        size = int.from_bytes(resources[start : start + 4], "big")
        if number == _IPTC:
            return resources[start + 4 : start + 4 + size] or None
        at = start + 4 + size + size % 2
    return None


def _dpi_of(image: Image.Image) -> tuple[float, float] | None:
    try:
        across, down = (float(value) for value in image.info.get("dpi", ()))
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    # Pillow says 1 of a TIFF file without a resolution.
    return (across, down) if 1 < across < 1e5 and 1 < down < 1e5 else None


def _has_credentials(image: Image.Image, path: Path | None, xmp: bytes | None) -> bool:
    """Whether a file carries a C2PA manifest, or says where one is."""
    if xmp and _PROVENANCE.search(xmp):
        return True
    if image.format in ("JPEG", "MPO"):
        segments = getattr(image, "applist", ())
        return any(name == "APP11" and data.startswith(b"JP") and b"c2pa" in data for name, data in segments)
    if image.format == "PNG":
        return any(chunk[0] == b"caBX" for chunk in getattr(image, "private_chunks", ()))
    if image.format == "TIFF":
        return _C2PA_TAG in image.tag_v2  # type: ignore[attr-defined]
    if image.format == "WEBP":
        return path is not None and "C2PA" in webp_chunks(path)
    return image.format in ("AVIF", "HEIF") and path is not None and _has_c2pa_box(path)


def webp_chunks(path: Path) -> tuple[str, ...]:
    """The names of the chunks of a WebP file, in order; "VP8L" holds pixels without loss."""
    names = []
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            names.append(head[:4].decode("latin-1"))
            size = int.from_bytes(head[4:], "little")
            # The frame of an animation holds chunks of its own, behind 16 bytes.
            file.seek(16 if names[-1] == "ANMF" else size + size % 2, 1)
    return tuple(names)


def _has_c2pa_box(path: Path) -> bool:
    """Whether a file of boxes (ISO 14496-12) has one that holds Content Credentials."""
    with path.open("rb") as file:
        while len(head := file.read(8)) == 8:
            size, kind, read = int.from_bytes(head[:4], "big"), head[4:], 8
            if size == 1:
                size, read = int.from_bytes(file.read(8), "big"), 16
            if kind == b"uuid" and file.read(16) == _C2PA_UUID:
                return True
            read += 16 if kind == b"uuid" else 0
            if size < read:  # to the end of the file, or damaged
                return False
            file.seek(size - read, 1)
    return False
