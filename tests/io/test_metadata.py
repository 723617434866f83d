"""What files say beside their pixels, and how they are coded: a table of formats that goes in and out.

`make_folder` writes the files of a photographer's folder: formats, modes, kinds of metadata.
"""

import io
import json
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms, PngImagePlugin, TiffImagePlugin, features

from privgen.io.batches import BatchOptions
from privgen.io.exif import edit_exif
from privgen.io.image_like import open_images
from privgen.io.images import SAVE_FORMATS, encode_image, load_image, save_image
from privgen.io.metadata import CREDENTIALS_NOTE, HOLDS, KINDS, photoshop_resources


AVIF = [pytest.param("avif", marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF"))]
SUFFIXES = ["jpg", "png", "tiff", "webp", *AVIF, "bmp"]
MODES = {
    "jpg": ["L", "RGB"],
    "png": ["L", "LA", "RGB", "RGBA", "P", "1", "I;16"],
    "tiff": ["L", "LA", "RGB", "RGBA", "I;16"],
    "webp": ["RGB", "RGBA"],
    "avif": ["L", "RGB", "RGBA"],
    "bmp": ["L", "RGB"],
}
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
    file = io.BytesIO()
    image.save(file, format=SAVE_FORMATS[f".{suffix}"], **options)
    return with_artist(file.getvalue())


def make_folder(folder):
    """Formats x modes x all metadata, none, and one kind at a time: some sixty files."""
    folder.mkdir()
    for suffix, modes in MODES.items():
        if suffix == "avif" and not features.check("avif"):
            continue
        holds = HOLDS[SAVE_FORMATS[f".{suffix}"]]
        for mode in modes:
            for name, said in (("all", holds), ("none", frozenset())):
                (folder / f"{name}-{mode.replace(';', '')}.{suffix}").write_bytes(file_of(suffix, mode, said))
        for kind in holds:
            (folder / f"{kind}.{suffix}").write_bytes(file_of(suffix, "RGB", {kind}))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("photographer") / "folder")


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
        dpi = image.info.get("dpi")
        return {
            "exif": (tags, inner, place) if tags else None,
            "xmp": image.info.get("xmp"),
            "iptc": iptc if iptc is None else iptc.rstrip(b"\0"),
            "icc_profile": image.info.get("icc_profile"),
            "comment": image.info.get("comment") or text.pop("Comment", "").encode() or None,
            "dpi": dpi and round(dpi[0]),
            "text": {name: value for name, value in text.items() if name in TEXT} or None,
        }


def test_every_row_of_the_table_holds(folder, tmp_path):
    files = sorted(folder.iterdir())
    assert len(files) > 55
    batch = BatchOptions(keep_format=True)
    for source in files:
        loaded = load_image(source)
        data, notes = batch.encode(loaded.with_pixels(loaded.pixels * 0.9), source)
        (tmp_path / source.name).write_bytes(data)
        before, after = said_by(source), said_by(tmp_path / source.name)
        # Pillow reads a resolution from EXIF, and BMP files always say one.
        for kind in set(KINDS) - ({"dpi"} if source.suffix == ".bmp" or before["dpi"] is None else set()):
            assert after[kind] == before[kind], (source.name, kind)
        again = load_image(tmp_path / source.name)
        assert (again.grey, again.bits, again.alpha is None) == (loaded.grey, loaded.bits, loaded.alpha is None)
        assert again.metadata == loaded.metadata, source.name
        assert (again.coding, notes) == (loaded.coding, ())


def test_the_table_of_the_documentation_is_that_of_the_code(root):
    text = (root / "docs" / "reference" / "formats.md").read_text(encoding="utf-8")
    table = text.split("beside its pixels:\n\n")[1].split("\n\n")[0].splitlines()
    head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    assert len(rows) == len(KINDS)
    for kind, (_, *cells) in zip(KINDS, rows, strict=True):
        assert cells == ["yes" if kind in HOLDS[name.upper()] else "-" for name in head[1:]]


@pytest.mark.parametrize("suffix", ["jpg", "tiff", "webp", *AVIF])
def test_all_that_other_formats_say_goes_into_png(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(file_of(suffix))
    loaded = load_image(tmp_path / f"a.{suffix}")
    save_image(loaded, tmp_path / "a.png")
    before, after = said_by(tmp_path / f"a.{suffix}"), said_by(tmp_path / "a.png")
    assert {kind for kind in KINDS if after[kind] is not None} == HOLDS[loaded.format]
    assert after == {kind: before[kind] if kind in HOLDS[loaded.format] else None for kind in KINDS}


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_private_and_strip(tmp_path, suffix):
    (tmp_path / f"a.{suffix}").write_bytes(file_of(suffix))
    loaded = load_image(tmp_path / f"a.{suffix}")
    for keeping in ("private", "strip"):
        path = save_image(loaded, tmp_path / f"{keeping}.{suffix}", metadata=keeping)
        data, after, holds = path.read_bytes(), said_by(path), HOLDS[SAVE_FORMATS[f".{suffix}"]]
        assert not [secret for secret in (*SECRETS, b"Paris", b"Rivoli") if secret in data]
        kept = {"icc_profile"} if keeping == "strip" else {"exif", "icc_profile", "comment", "text", "dpi"}
        assert {kind for kind in KINDS if after[kind] is not None} - {"dpi"} == (holds & kept) - {"dpi"}
        if keeping == "private" and "exif" in holds:
            tags, inner, place = after["exif"]
            assert tags[0x013B].rstrip() == ARTIST
            assert (inner[0x9003], inner[0x829A], place) == ("2024:01:02 03:04:05", 1 / 250, {})
        if keeping == "private" and "text" in holds:
            assert set(after["text"]) == {"parameters", "workflow"}


def test_thumbnail_and_orientation_do_not_stay_in_the_exif_data(tmp_path):
    """A thumbnail would show what the image was; makers' notes stay where they are, since they point to themselves."""
    block = exif(6)
    where = block.index(b"maker's note")
    tiff = bytearray(block[6:])
    first = struct.unpack_from(">I" if tiff[:2] == b"MM" else "<I", tiff, 4)[0]
    order = ">" if tiff[:2] == b"MM" else "<"
    count = struct.unpack_from(order + "H", tiff, first)[0]
    struct.pack_into(order + "I", tiff, first + 2 + 12 * count, len(tiff))
    thumbnail = struct.pack(order + "HHHIIHHIII", 2, 0x0201, 4, 1, len(tiff) + 30, 0x0202, 4, 1, 9, 0) + b"thumbnail"
    edited = edit_exif(b"Exif\0\0" + bytes(tiff) + thumbnail)
    assert b"thumbnail" not in edited
    assert edited.index(b"maker's note") == where
    assert len(edited) <= len(block)
    found = Image.Exif()
    found.load(edited)
    assert 0x0112 not in found
    assert (found.get_ifd(0x8769)[0xA002], found.get_ifd(0x8769)[0xA003]) == (64, 96)


def test_xmp_says_that_the_pixels_are_upright(tmp_path):
    """Pillow turns an image by its XMP data if its EXIF data does not say how."""
    picture().save(tmp_path / "a.jpg", xmp=XMP.replace(b'Orientation="1"', b'Orientation="6"'))
    loaded = load_image(tmp_path / "a.jpg")
    assert (loaded.width, loaded.height) == (64, 96)
    again = load_image(save_image(loaded, tmp_path / "out.jpg"))
    assert (again.width, again.height) == (64, 96)


def with_credentials(suffix):
    """A file with a manifest that no one would believe, where the format keeps manifests."""
    jumbf = b"\0\0\0\x28jumb\0\0\0\x20jumdc2pa" + bytes(12) + b"\x03c2pa\0\0\0"
    data = file_of(suffix, said={"dpi"})
    if suffix == "jpg":
        return data[:2] + segment(0xEB, b"JP\0\1\0\0\0\1" + jumbf) + data[2:]
    if suffix == "png":
        return data[:33] + chunk(b"caBX", jumbf) + data[33:]
    if suffix == "webp":
        body = data[12:] + b"C2PA" + struct.pack("<I", len(jumbf)) + jumbf
        return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body
    if suffix == "tiff":
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags.tagtype[52545], tags[52545] = 7, jumbf
        file = io.BytesIO()
        picture().save(file, "TIFF", tiffinfo=tags)
        return file.getvalue()
    uuid = bytes.fromhex("d8fec3d61b0e483c92975828877ec481")
    return data + struct.pack(">I4s", 8 + 16 + len(jumbf), b"uuid") + uuid + jumbf


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tiff", *AVIF])
def test_content_credentials_are_left_out_and_said(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(with_credentials(suffix))
    loaded = load_image(path)
    assert loaded.notes == ()  # it is no news for those who only read it
    data, notes = BatchOptions(keep_format=True).encode(loaded, path)
    assert notes == (CREDENTIALS_NOTE,)
    assert b"c2pa" not in data


def test_heic_is_read_and_becomes_png(root, tmp_path):
    pytest.importorskip("pi_heif")
    source = root / "tests" / "fixtures" / "turned.heic"
    loaded = load_image(source)
    assert (loaded.width, loaded.height, loaded.format) == (48, 64, "HEIF")
    assert loaded.pixels[:, 0, -1].max() < 0.02  # the corner that was on the left before it was turned
    batch = BatchOptions(keep_format=True)
    [target] = batch.outputs([source], tmp_path).values()
    assert (target.name, batch.encode(loaded, target)[1]) == (
        "turned.png",
        ("it became PNG, because HEIF files are not written",),
    )
    save_image(loaded, target)
    found = said_by(target)
    assert (found["exif"][0], found["exif"][2], found["xmp"]) == ({0x010F: "Maker"}, {1: "N"}, b"<x:xmpmeta/>")


@pytest.mark.parametrize("quality", [10, 50, 75, 92, 100])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg_keeps_tables_and_resolution_of_colour(tmp_path, quality, subsampling):
    picture().save(tmp_path / "a.jpg", quality=quality, subsampling=subsampling, progressive=quality == 75)
    loaded = load_image(tmp_path / "a.jpg")
    save_image(loaded, tmp_path / "b.jpg")
    with Image.open(tmp_path / "a.jpg") as before, Image.open(tmp_path / "b.jpg") as after:
        assert after.quantization == before.quantization
        assert [layer[1:3] for layer in after.layer] == [layer[1:3] for layer in before.layer]
        assert after.info.get("progressive") == before.info.get("progressive")
    assert (tmp_path / "b.jpg").stat().st_size < 1.1 * (tmp_path / "a.jpg").stat().st_size
    with Image.open(io.BytesIO(encode_image(loaded, "JPEG", quality=95))) as chosen:
        assert max(chosen.quantization[0]) <= 12
        assert chosen.layer[0][1:3] == (1, 1)


@pytest.mark.parametrize("lossless", [True, False])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_stays_as_lossless_as_it_was(tmp_path, lossless, mode):
    picture(mode).save(tmp_path / "a.webp", lossless=lossless, exif=exif())
    loaded = load_image(tmp_path / "a.webp")
    again = load_image(save_image(loaded, tmp_path / "b.webp"))
    assert again.coding.lossless == lossless
    assert torch.equal(again.pixels, loaded.pixels) == lossless
    assert not load_image(save_image(loaded, tmp_path / "c.webp", quality=80)).coding.lossless


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA", "I;16", "YCbCr", "HSV", "RGBX", "RGBa"])
def test_pillow_images_come_back_in_their_mode(mode):
    source = picture("RGBA").convert(mode) if mode != "I;16" else picture(mode)
    source.info["parameters"] = "a cat"
    given = open_images(source)
    back = given.restore([given.images[0].pixels])
    assert (back.mode, back.size, back.info["parameters"]) == (mode, source.size, "a cat")
    difference = np.abs(np.asarray(back).astype(int) - np.asarray(source).astype(int))
    if mode == "HSV":  # hue is a circle
        difference = difference[:, :, 1:]
    assert difference.max() <= {"YCbCr": 2, "HSV": 6, "RGBa": 3}.get(mode, 0)


def test_paths_come_back_with_what_they_said(tmp_path):
    (tmp_path / "a.png").write_bytes(file_of("png"))
    given = open_images(tmp_path / "a.png")
    info = given.restore([given.images[0].pixels]).info
    assert (info["parameters"], info["comment"]) == ("a cat, Steps: 20", b"taken in the rain")
    assert round(info["dpi"][0]) == 300
