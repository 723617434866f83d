import io
import struct
import warnings
import zlib

import numpy as np
import pytest
from PIL import Image

from privgen.errors import PrivgenError
from privgen.io.images import load_image
from privgen.io.images_16bit import encode_png, encode_tiff


WIDTH, HEIGHT = 64, 48


def picture():
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return Image.fromarray(np.stack([x * 3, y * 5, (x + y) * 2], axis=-1).astype(np.uint8))


def deep_samples():
    return np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))


def encoded(kind, **options):
    file = io.BytesIO()
    picture().save(file, format=kind, **options)
    return file.getvalue()


WHOLE = {
    "PNG": encoded("PNG"),
    "JPEG": encoded("JPEG"),
    "WEBP": encoded("WEBP"),
    "TIFF": encoded("TIFF"),
    "TIFF, compressed": encoded("TIFF", compression="tiff_lzw"),
    "BMP": encoded("BMP"),
    "GIF": encoded("GIF"),
    "PPM": encoded("PPM"),
    "16-bit PNG": encode_png(deep_samples()),
    "16-bit TIFF": encode_tiff(deep_samples()),
}
BAD = {
    "text": (b"not an image", r"is not an image in PNG, JPEG, .*; convert it to PNG or JPEG\."),
    "empty": (b"", r"is empty; convert it"),
    "program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n", "is not an image in"),
    "1 x 1": (png_header(1, 1), r"has 1 x 1 pixels; each side must have at least 16\."),
    "20000 x 10": (png_header(20_000, 10), r"has 20000 x 10 pixels; each side must"),
    "20000 x 20": (png_header(20_000, 20), r"has 20000 x 20 pixels; crop it to sides at most 1 : 50\."),
    "over the limit": (png_header(10_000, 10_000), r"10000 x 10000 pixels, more than the 89,478,485 allowed; make it"),
    "bomb": (
        png_header(2**31 - 1, 2**31 - 1),
        r"safely, 4,611,686,014,132,420,609 where 89,478,485 are allowed; make",
    ),
    **{
        f"half a {kind}": (data[: len(data) // 2], r"(is damaged or cut short|is not an image)")
        for kind, data in WHOLE.items()
    },
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path, case):
    data, match = BAD[case]
    path = tmp_path / "photo.png"
    path.write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with pytest.raises(PrivgenError, match=match) as caught:
            load_image(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert "\n" not in message


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(PrivgenError, match=r"nothing\.png does not exist; check the path\."):
        load_image(tmp_path / "nothing.png")
    with pytest.raises(PrivgenError, match="is not a file; check the path"):
        load_image(tmp_path)


def test_limit_of_pixels(tmp_path):
    picture().save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png", max_pixels=WIDTH * HEIGHT).width == WIDTH
    with pytest.raises(PrivgenError, match=r"a\.png has 64 x 48 .* 3,071 .*, or raise --max-pixels"):
        load_image(tmp_path / "a.png", max_pixels=WIDTH * HEIGHT - 1)


def test_a_higher_limit_is_also_that_of_pillow(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT // 4)
    picture().save(tmp_path / "a.png")
    with pytest.raises(PrivgenError, match="3,072 where 768 are allowed"):
        load_image(tmp_path / "a.png", max_pixels=WIDTH * HEIGHT // 4)
    assert load_image(tmp_path / "a.png", max_pixels=WIDTH * HEIGHT).width == WIDTH
    assert WIDTH * HEIGHT // 4 == Image.MAX_IMAGE_PIXELS


def test_random_damage_is_an_error_or_an_image(tmp_path):
    rng = np.random.default_rng(0)
    sources = [*WHOLE.values(), encoded("AVIF"), encoded("JPEG2000")] if "AVIF" in Image.SAVE else [*WHOLE.values()]
    for trial in range(300):
        data = bytearray(sources[trial % len(sources)])
        for place in rng.integers(0, min(len(data), 200), 3):
            data[place] = rng.integers(256)
        (tmp_path / "a").write_bytes(data)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                loaded = load_image(tmp_path / "a")
        except PrivgenError:
            continue
        assert loaded.pixels.isfinite().all()
