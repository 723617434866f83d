"""EXIF blocks, edited in place: what stays keeps its bytes and its place, so that makers' notes can still be read.

Source: Exif 2.32 (CIPA DC-008, 2019), section 4.6; TIFF 6.0 (Adobe, 1992), section 2.
"""

import struct
from collections.abc import Collection, Iterator

from PIL import ExifTags, Image, TiffImagePlugin


MARK = b"Exif\0\0"
"""Beginning of an EXIF block in a JPEG file. Other formats do without."""

_ORIENTATION = int(ExifTags.Base.Orientation)
_WIDTH, _HEIGHT = int(ExifTags.Base.ExifImageWidth), int(ExifTags.Base.ExifImageHeight)
_DIRECTORIES = frozenset({int(ExifTags.IFD.Exif), int(ExifTags.IFD.GPSInfo), int(ExifTags.IFD.Interop)})
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}  # bytes, by type
_THUMBNAILS = {0x0201: 0x0202, 0x0111: 0x0117}  # the tag of where a thumbnail lies, and that of its bytes

PRIVATE = frozenset(
    {
        int(ExifTags.IFD.GPSInfo),
        *(0x927C, 0xA420, 0xA430, 0xA431, 0xA435),  # maker's note, image id, owner, serial numbers of body and lens
        *(0xC62F, 0xC65D, 0xFDE8, 0xFDE9, 0x013C),  # serial number, raw id, owner and number in Photoshop, computer
        *(33550, 33920, 33922, 34264, 34735, 34736, 34737, 42112, 42113, 50844),  # places of GeoTIFF and GDAL
    }
)
"""Tags that say where, or with which camera, an image was taken."""

# Pillow takes all tags of a TIFF file for EXIF data. These describe the structure of the one file only.
_TIFF_STRUCTURE = frozenset(
    {254, 255, 256, 257, 258, 259, 262, 263, 266, 273, 277, 278, 279, 284, 292, 293, 297, 301, 317, 318, 319, 320}
    | {321, 322, 323, 324, 325, 330, 332, 338, 339, 340, 341, 347, 512, 513, 514, 519, 520, 521, 529, 530, 531, 532}
    | {700, 33723, 34377, 34675, 37724, 52545}
)


def edit_exif(block: bytes, drop: Collection[int] = ()) -> bytes | None:
    """Remove the orientation, the thumbnail, and the tags that you name.

    The bytes of what is removed become zeros. If the image was turned by a quarter, its width and height are
    exchanged.

    Args:
        block: an EXIF block, with or without its mark.
        drop: tags to remove from all directories.

    Returns:
        The block with its mark, or None if nothing is left.

    Raises:
        ValueError: the block is damaged.
    """
    try:
        return _Block(block).edited({_ORIENTATION, *drop})
    except (struct.error, IndexError) as error:
        raise ValueError(f"its EXIF data is damaged: {error}") from error


def check_exif(block: bytes) -> None:
    """Read a block whole, as encoders do that write it.

    Args:
        block: an EXIF block.

    Raises:
        OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error: the block is damaged.
    """
    exif = Image.Exif()
    exif.load(block)
    copy_tags(exif, TiffImagePlugin.ImageFileDirectory_v2())


def exif_of_tiff(image: Image.Image) -> bytes | None:
    """Make an EXIF block of the tags of a TIFF file, without those of its structure.

    Args:
        image: an open TIFF file.
    """
    tags, directory = image.getexif(), TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    copy_tags(tags, directory, _TIFF_STRUCTURE)
    return MARK + b"II*\0\x08\0\0\0" + directory.tobytes(8) if len(directory) else None


def copy_tags(
    exif: Image.Exif,
    directory: TiffImagePlugin.ImageFileDirectory_v2,
    left_out: Collection[int] = (),
) -> None:
    """Copy EXIF data into a directory of a TIFF file, with its sub-directories.

    Args:
        exif: the data.
        directory: takes it.
        left_out: tags that stay behind.
    """
    for tag, value in exif.items():
        if tag in _DIRECTORIES:
            directory[tag] = {name: _plain(item) for name, item in exif.get_ifd(tag).items()}
        elif tag not in left_out:
            directory[tag] = _plain(value)


def _plain(value: object) -> object:
    return _Latin1(value) if isinstance(value, str) else value


class _Latin1(str):
    """Text that Pillow writes with the bytes it has read: it decodes Latin-1, and would encode ASCII with "?"."""

    __slots__ = ()

    def encode(self, encoding: str = "latin-1", errors: str = "strict") -> bytes:
        return str.encode(self, "latin-1", "replace")


class _Block:
    """A block while it is edited. Offsets count from its TIFF header."""

    def __init__(self, block: bytes) -> None:
        self.data = bytearray(block.removeprefix(MARK))
        order = {b"II*\0": "<", b"MM\0*": ">"}.get(bytes(self.data[:4]))
        if order is None:
            raise ValueError("its EXIF data has no header")
        self.order, self.end, self.turned = order, 8, False
        self.seen: set[int] = set()

    def edited(self, drop: Collection[int]) -> bytes | None:
        first = self.number("I", 4)
        self.turned = any(
            tag == _ORIENTATION and self.number("H", at + 8) in (5, 6, 7, 8) for at, tag, _, _ in self.entries(first)
        )
        count = self.prune(first, drop)
        # Makers' notes may point to data outside of them, so only zeros are cut off.
        length = max(self.end, len(bytes(self.data).rstrip(b"\0")))
        return MARK + bytes(self.data[:length]) if count else None

    def number(self, kind: str, at: int) -> int:
        value: int = struct.unpack_from(self.order + kind, self.data, at)[0]
        return value

    def entries(self, directory: int) -> Iterator[tuple[int, int, int, int]]:
        """For each entry: where it is, its tag, where its value is, and the size of the value."""
        for i in range(self.number("H", directory)):
            at = directory + 2 + 12 * i
            tag, kind, count = struct.unpack_from(self.order + "HHI", self.data, at)
            size = _SIZES.get(kind, 1) * count
            yield at, tag, (at + 8 if size <= 4 else self.number("I", at + 8)), size

    def prune(self, directory: int, drop: Collection[int]) -> int:
        """Remove entries from a directory, and from those below it; return how many are left."""
        if directory in self.seen:
            raise ValueError("its EXIF data goes round in circles")
        self.seen.add(directory)
        kept: dict[int, bytearray] = {}
        entries = list(self.entries(directory))
        after = directory + 2 + 12 * len(entries)
        for at, tag, where, size in entries:
            if tag in drop:
                if tag in _DIRECTORIES:
                    self.wipe_directory(self.number("I", at + 8))
                self.wipe(where, size)
                continue
            if tag in _DIRECTORIES:
                self.prune(self.number("I", at + 8), drop)
            kept[tag] = self.data[at : at + 12]
            self.end = max(self.end, min(where + size, len(self.data)))
        if self.turned and _WIDTH in kept and _HEIGHT in kept:
            kept[_WIDTH][2:], kept[_HEIGHT][2:] = kept[_HEIGHT][2:], kept[_WIDTH][2:]
        if following := self.number("I", after):  # the directory of the thumbnail
            self.wipe_directory(following)
        entries_now = struct.pack(self.order + "H", len(kept)) + b"".join(kept.values())
        self.data[directory : after + 4] = entries_now.ljust(after + 4 - directory, b"\0")
        self.end = max(self.end, directory + len(entries_now) + 4)
        return len(kept)

    def wipe_directory(self, directory: int) -> None:
        """Fill a directory and its values with zeros, and the thumbnail that it points to."""
        entries = list(self.entries(directory))
        values = {tag: self.number("I", at + 8) for at, tag, _, _ in entries}
        for start, length in _THUMBNAILS.items():
            if start in values and length in values:
                self.wipe(values[start], values[length])
        for _, _, where, size in entries:
            self.wipe(where, size)
        self.wipe(directory, 2 + 12 * len(entries) + 4)

    def wipe(self, start: int, size: int) -> None:
        end = min(start + size, len(self.data))
        if start < end:
            self.data[start:end] = bytes(end - start)
