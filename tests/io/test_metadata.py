"""What files say beside their pixels, and how they are coded. `tests/photo_folder.py` makes the files."""

import io
import struct

import numpy as np
import pytest
import torch
from photo_folder import ARTIST, SECRETS, XMP, chunk, exif, file_of, picture, said_by, segment
from PIL import Image, TiffImagePlugin, features

from privgen.errors import PrivgenError
from privgen.io.batches import BatchOptions
from privgen.io.exif import edit_exif
from privgen.io.files import HEIF_PACKAGE
from privgen.io.image_like import open_images
from privgen.io.images import SAVE_FORMATS, encode_image, load_image, save_image
from privgen.io.metadata import CREDENTIALS_NOTE, HOLDS, KINDS


AVIF = [pytest.param("avif", marks=pytest.mark.skipif(not features.check("avif"), reason="Pillow without AVIF"))]
SUFFIXES = ["jpg", "png", "tiff", "webp", *AVIF, "bmp"]


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


def test_heic_is_read_and_written_where_it_can_be(root, tmp_path):
    """Without pillow-heif, it becomes PNG, and it is said."""
    if HEIF_PACKAGE is None:
        pytest.skip("needs pi-heif or pillow-heif")
    source = root / "tests" / "fixtures" / "turned.heic"
    loaded = load_image(source)
    assert (loaded.width, loaded.height, loaded.format) == (48, 64, "HEIF")
    assert loaded.pixels[:, 0, -1].max() < 0.02  # the corner that was on the left before it was turned
    batch = BatchOptions(keep_format=True)
    [target] = batch.outputs([source], tmp_path).values()
    data, notes = batch.encode(loaded, target)
    if HEIF_PACKAGE == "pillow_heif":
        assert (target.name, notes) == ("turned.heic", ())
    else:
        assert (target.name, notes) == ("turned.png", ("it became PNG, because HEIF files are not written",))
        with pytest.raises(PrivgenError, match="pip install pillow-heif, or choose another suffix"):
            batch.outputs([source], tmp_path / "out.heic")
    target.write_bytes(data)
    again, found = load_image(target), said_by(target)
    assert (again.width, again.height) == (48, 64)
    assert (again.pixels - loaded.pixels).abs().mean() < 0.01
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
