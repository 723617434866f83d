"""Makes a photographer's folder: 60 files of many formats, modes and kinds of metadata, some of which are no images.

    python tests/photo_folder.py FOLDER

The files are made by Pillow, pypng and tifffile alone, so that they test what privgen reads and writes. HEIC needs a
file of tests/fixtures, because nothing here writes it.
"""

import io
import json
import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import png
import tifffile
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, features

from privgen.io.files import HEIF_PACKAGE
from privgen.io.images import SAVE_FORMATS, can_write
from privgen.io.metadata import HOLDS, KINDS, photoshop_resources


ARTIST = "Zo\u00eb \u0141ukasz".encode().decode("latin-1")  # UTF-8 in a field of ASCII, as many programs write it
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description tiff:Orientation="1" photoshop:City="Paris"/>'
    b"</rdf:RDF></x:xmpmeta>"
)
IPTC = b"\x1c\x02\x00\x00\x02\x00\x04" + b"\x1c\x02\x5a\x00\x05Paris" + b"\x1c\x02\x74\x00\x05\xc2\xa9 Zoe"[:10]
SECRETS = (b"SN-12345", b"maker's note", b"LENS-678", b"Owner Name")
PROFILES = {
    True: ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()[:16] + b"GRAY" + bytes(200),
    False: ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
}
TEXT = {"parameters": "a cat, Steps: 20", "workflow": json.dumps({"nodes": ["\u732b"]}), "Home": "Rue de Rivoli 1"}


@dataclass(frozen=True)
class Photo:
    """A file of the folder.

    Attributes:
        data: its content.
        refused: part of the sentence with which it is refused; empty if it is read.
        notes: parts of what is said of it.
        is_image: whether a search of the folder takes it for an image.
    """

    data: bytes
    refused: str = ""
    notes: tuple[str, ...] = ()
    is_image: bool = True


def photos():
    """The files of the folder by their paths in it."""
    made = jpeg_photos() | png_photos() | tiff_photos() | other_photos() | broken_photos()
    if features.check("avif"):
        made |= {f"avif/{mode}.avif": Photo(file_of("avif", mode)) for mode in ("RGB", "RGBA")}
    if HEIF_PACKAGE:
        heic = Path(__file__).parent / "fixtures" / "turned.heic"
        notes = () if can_write(".heic") else (became_png("HEIF"),)
        made["phone/turned.heic"] = Photo(heic.read_bytes(), "", notes)
    return made


def make_folder(folder):
    """Write the files, and return them by their paths."""
    made = {folder / name: photo for name, photo in photos().items()}
    for path, photo in made.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photo.data)
    return made


def jpeg_photos():
    said = {
        **{f"only-{kind}": {"said": frozenset({kind})} for kind in sorted(HOLDS["JPEG"])},
        "progressive": {"progressive": True},
        "baseline": {"said": frozenset(), "quality": 60},
        "grey": {"mode": "L"},
        **{f"colours-{name}": {"subsampling": name} for name in ("4:2:0", "4:2:2", "4:4:4")},
    }
    made = {f"jpeg/{name.replace(':', '')}.jpg": Photo(file_of("jpg", **options)) for name, options in said.items()}
    turned = saved(picture(), "JPEG", exif=exif(6))
    cmyk = saved(picture("CMYK"), "JPEG")
    return made | {"jpeg/turned.JPG": Photo(turned), "jpeg/cmyk.jpeg": Photo(cmyk, "", ("CMYK becomes RGB",))}


def png_photos():
    modes = {"grey": "L", "grey-alpha": "LA", "grey-1": "1", "grey-16": "I;16", "rgb": "RGB", "alpha": "RGBA"}
    made = {name: file_of("png", mode) for name, mode in modes.items()}
    made |= {f"grey-{bits}": plain_png(bits, greyscale=True) for bits in (2, 4)}
    made |= {"rgb-16": plain_png(16, greyscale=False), "alpha-16": plain_png(16, greyscale=False, alpha=True)}
    made |= {"interlaced": plain_png(8, greyscale=False, interlace=True)}
    made |= {"transparent-colour": saved(picture(), "PNG", transparency=tuple(np.asarray(picture())[0, 0].tolist()))}
    palette = ("palette colours become full colour",)
    coloured = {"palette": file_of("png", "P"), "palette-2": saved(picture().quantize(4), "PNG", bits=2)}
    coloured |= {"palette-transparent": saved(picture("P"), "PNG", transparency=3)}
    photos = {name: Photo(data) for name, data in made.items()}
    photos |= {name: Photo(data, "", palette) for name, data in coloured.items()}
    return {f"png/{name}.png": photo for name, photo in photos.items()}


def tiff_photos():
    modes = {"grey": "L", "grey-alpha": "LA", "grey-16": "I;16", "rgb": "RGB", "alpha": "RGBA"}
    made = {name: Photo(file_of("tiff", mode)) for name, mode in modes.items()}
    for name in ("tiff_lzw", "tiff_adobe_deflate", "packbits"):
        made[name.removeprefix("tiff_")] = Photo(file_of("tiff", said=frozenset(KINDS) - {"exif"}, compression=name))
    made["cmyk"] = Photo(saved(picture("CMYK"), "TIFF"), "", ("CMYK becomes RGB",))
    deep = np.asarray(picture()).astype(np.uint16) * 257
    made["tiles"] = Photo(tiff(np.asarray(picture()), tile=(16, 32), photometric="rgb"))
    made["strips-16"] = Photo(tiff(deep, rowsperstrip=8, photometric="rgb"))
    pages = saved(picture(), "TIFF", save_all=True, append_images=[picture("L")])
    made["pages"] = Photo(pages, "", ("several pages: the first is used",))
    made["float"] = Photo(tiff(deep.astype(np.float32), photometric="rgb"), "32-bit samples")
    return {f"tiff/{name}.tif": photo for name, photo in made.items()}


def other_photos():
    frames = {"save_all": True, "append_images": [picture().rotate(180)], "duration": 100}
    first = "animated: the first frame is used"
    palette = "palette colours become full colour"
    return {
        "web/lossy.webp": Photo(file_of("webp", quality=80)),
        "web/lossless.webp": Photo(file_of("webp", "RGBA", lossless=True)),
        "web/moving.webp": Photo(saved(picture(), "WEBP", **frames), "", (first,)),
        "web/still.gif": Photo(saved(picture("P"), "GIF", comment=b"rain"), "", (palette, became_png("GIF"))),
        "web/frames.gif": Photo(saved(picture(), "GIF", **frames), "", (first, became_png("GIF"))),
        "old/rgb.bmp": Photo(file_of("bmp")),
        "old/grey.bmp": Photo(file_of("bmp", "L")),
        "old/colour.ppm": Photo(saved(picture(), "PPM"), "", (became_png("PPM"),)),
        "old/shades.pgm": Photo(saved(picture("L"), "PPM"), "", (became_png("PPM"),)),
        "old/waves.jp2": Photo(saved(picture(), "JPEG2000"), "", (became_png("JPEG2000"),)),
    }


def broken_photos():
    whole = file_of("jpg")
    return {
        "camera/raw.CR2": Photo(b"II*\0\x10\0\0\0CR\2\0" + bytes(100), is_image=False),
        "camera/read me.txt": Photo(b"Taken in the rain.", is_image=False),
        "camera/film.mp4": Photo(b"\0\0\0\x18ftypmp42" + bytes(100), is_image=False),
        "camera/.hidden.jpg": Photo(whole, is_image=False),
        "camera/empty.jpg": Photo(b"", "is empty"),
        "camera/cut short.jpg": Photo(whole[: len(whole) * 2 // 3], "is damaged or cut short"),
        "camera/text.png": Photo(b"Taken in the rain.", "is not an image"),
    }


def became_png(name):
    return f"it became PNG, because {name} files are not written"


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return with_artist(file.getvalue())


def tiff(samples, **options):
    file = io.BytesIO()
    tifffile.imwrite(file, samples, metadata=None, software=False, **options)
    return file.getvalue()


def plain_png(bits, *, alpha=False, interlace=False, greyscale):
    """A PNG file of a depth that Pillow does not write."""
    samples = np.asarray(picture("L" if greyscale else "RGBA" if alpha else "RGB")).astype(np.uint16)
    samples = samples * 257 >> (16 - bits)
    file = io.BytesIO()
    writer = png.Writer(96, 64, greyscale=greyscale, alpha=alpha, bitdepth=bits, interlace=interlace)
    writer.write(file, samples.reshape(64, -1).tolist())
    return file.getvalue()


def picture(mode="RGB", size=(96, 64)):
    y, x = np.mgrid[0 : size[1], 0 : size[0]]
    planes = np.stack([x * 2, y * 3, (x + y) * 1.5, 55 + x + y], axis=-1).astype(np.uint8)
    if mode == "I;16":
        return Image.fromarray((x * 500 + y).astype(np.uint16))
    rgba = Image.fromarray(planes)
    return rgba.convert("RGB").quantize(64) if mode == "P" else rgba.convert(mode)


def tags_of(orientation=None):
    block = Image.Exif()
    block[0x010F], block[0x013B], block[0xFDE9] = "Maker", "Artist of the picture", "SN-12345"
    if orientation:
        block[0x0112] = orientation
    inner = block.get_ifd(0x8769)
    inner |= {0x9003: "2024:01:02 03:04:05", 0xA431: "SN-12345", 0xA435: "LENS-678", 0xA430: "Owner Name"}
    inner |= {0x927C: b"maker's note", 0x829A: TiffImagePlugin.IFDRational(1, 250), 0xA002: 96, 0xA003: 64}
    block.get_ifd(0x8825).update({1: "N", 2: (48.0, 51.0, 29.6)})
    return block


def with_artist(data):
    """Pillow writes "?" for what is not ASCII."""
    return data.replace(b"Artist of the picture", ARTIST.encode("latin-1").ljust(21))


def exif(orientation=None):
    return with_artist(tags_of(orientation).tobytes())


def segment(marker, data):
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def chunk(name, data):
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def file_of(suffix, mode="RGB", said=frozenset(KINDS), **options):
    """The content of an image file, made by Pillow alone."""
    said = HOLDS[SAVE_FORMATS[f".{suffix}"]] & said
    image, grey = picture(mode), mode in ("L", "LA", "1", "I;16")
    all_of = {"exif": exif(), "xmp": XMP, "dpi": (300, 300), "comment": b"taken in the rain"}
    options |= {name: value for name, value in all_of.items() if name in said}
    if "icc_profile" in said:
        options["icc_profile"] = PROFILES[grey and suffix != "webp"]
    if suffix == "jpg" and "iptc" in said:
        options["extra"] = segment(0xED, b"Photoshop 3.0\0" + photoshop_resources(IPTC))
    if suffix == "png":
        info = options["pnginfo"] = PngImagePlugin.PngInfo()
        for name, text in TEXT.items() if "text" in said else ():
            info.add_itxt(name, text) if name == "workflow" else info.add_text(name, text)
        if "comment" in said:
            info.add_text("Comment", options.pop("comment").decode())
        if "iptc" in said:
            data = photoshop_resources(IPTC)
            info.add_text("Raw profile type iptc", f"\niptc\n{len(data):8}\n{data.hex()}\n", zip=True)
        if xmp := options.pop("xmp", None):
            info.add_itxt("XML:com.adobe.xmp", xmp.decode())
    if suffix == "tiff":
        block = options["exif"] = Image.Exif()
        block.load(tags_of().tobytes() if "exif" in said else b"")
        block.update({700: XMP} if options.pop("xmp", None) else {})
        block.update({33723: IPTC} if "iptc" in said else {})
    return saved(image, SAVE_FORMATS[f".{suffix}"], **options)


def said_by(path):
    """What a file says, as Pillow alone reads it."""
    with Image.open(path) as image:
        image.load()
        text = dict(getattr(image, "text", {}))
        iptc = image.info.get("photoshop", {}).get(0x0404)
        if image.format == "TIFF":
            iptc = image.tag_v2.get(33723)
        elif profile := text.pop("Raw profile type iptc", None):
            iptc = bytes.fromhex("".join(profile.split("\n")[3:]))[12:].rstrip(b"\0")
        block = image.getexif()
        tags = {tag: value for tag, value in block.items() if tag in (0x010F, 0x013B, 0xFDE9)}
        inner, place = dict(block.get_ifd(0x8769)), dict(block.get_ifd(0x8825))
        for turns in (0xA002, 0xA003):  # width and height, which change places in an image that is turned
            inner.pop(turns, None)
        dpi = image.info.get("dpi")
        return {
            "exif": (tags, inner, place) if tags else None,
            "xmp": image.info.get("xmp"),
            "iptc": iptc if iptc is None else iptc.rstrip(b"\0"),
            "icc_profile": image.info.get("icc_profile"),
            "comment": image.info.get("comment") or text.pop("Comment", "").encode() or None,
            "dpi": round(dpi[0]) if dpi and dpi[0] > 1 else None,  # Pillow says 1 of a TIFF file that says nothing
            "text": {name: value for name, value in text.items() if name in TEXT} or None,
        }


if __name__ == "__main__":
    print(f"{len(make_folder(Path(sys.argv[1])))} files in {sys.argv[1]}")
