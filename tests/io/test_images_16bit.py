import io
import struct
import tracemalloc
import zlib
from importlib.util import find_spec

import numpy as np
import png
import pytest
import tifffile
from PIL import Image

from privgen.errors import PrivgenError
from privgen.io.codecs import encode
from privgen.io.images import load_image, save_image
from privgen.io.images_16bit import encode_png
from privgen.io.metadata import Metadata


HEIGHT, WIDTH = 48, 64
PROFILE = bytes(16) + b"RGB " + bytes(range(108))


def deep_samples(channels):
    return np.random.default_rng(channels).integers(0, 65536, (HEIGHT, WIDTH, channels)).astype(np.uint16)


def exif(orientation=1):
    block = Image.Exif()
    block[0x0112], block[0x010F] = orientation, "Maker"
    block.get_ifd(0x8769)[0x9003] = "2024:01:02 03:04:05"
    block.get_ifd(0x8825)[1] = "N"
    return block.tobytes()


def samples_of(loaded):
    """What `load_image` has read, as (height, width, channels) of whole numbers."""
    planes = loaded.pixels[:1] if loaded.grey else loaded.pixels
    planes = [*planes, *([] if loaded.alpha is None else loaded.alpha)]
    return np.stack([(65535 * plane).round().numpy() for plane in planes], axis=-1)


def upright(samples, orientation):
    turned = np.rot90(samples, {3: 2, 4: 2, 5: -1, 6: -1, 7: 1, 8: 1}.get(orientation, 0))
    return turned[:, ::-1] if orientation in (2, 4, 5, 7) else turned


def write_tiff(path, samples, **options):
    options = {"photometric": "rgb", "metadata": None, **options}
    if samples.shape[2] == 4:
        options.setdefault("extrasamples", ["unassalpha"])
    if options.get("planarconfig") == "separate":
        samples = np.ascontiguousarray(np.moveaxis(samples, 2, 0))
    tifffile.imwrite(path, samples, **options)


def write_strip(path, data):
    """A TIFF file whose one strip is `data`, said to be compressed by deflate."""
    strip = {"compression": "zlib", "rowsperstrip": HEIGHT, "photometric": "rgb", "metadata": None}
    tifffile.imwrite(path, iter([data]), shape=(HEIGHT, WIDTH, 3), dtype=np.uint16, **strip)


def lzw(data):
    """LZW without compression: all codes have 9 bits, because the table is cleared before it grows."""
    codes = [code for first in range(0, len(data), 200) for code in (256, *data[first : first + 200])]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    return int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(-(-len(bits) // 8))


def png_of(channels, lines, *chunks):
    colour_type = {2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, colour_type, 0, 0, 0)
    file = io.BytesIO()
    png.write_chunks(file, [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")])
    return file.getvalue()


def filtered(samples):
    """Rows of a PNG file, each with another of the five filters (PNG specification, section 9)."""
    step = 2 * samples.shape[2]
    rows = samples.astype(">u2").view(np.uint8).reshape(HEIGHT, -1).astype(int)
    left, above = (np.pad(rows, pad)[:HEIGHT, : rows.shape[1]] for pad in (((0, 0), (step, 0)), ((1, 0), (0, 0))))
    corner = np.pad(above, ((0, 0), (step, 0)))[:, : rows.shape[1]]
    a, b, c = (abs(left + above - corner - x) for x in (left, above, corner))
    paeth = np.where((a <= b) & (a <= c), left, np.where(b <= c, above, corner))
    guesses = [0 * rows, left, above, (left + above) // 2, paeth]
    return b"".join(bytes([y % 5, *((rows[y] - guesses[y % 5][y]) % 256)]) for y in range(HEIGHT))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_come_back_exactly(tmp_path, channels, suffix):
    samples = deep_samples(channels)
    (tmp_path / f"a.{suffix}").write_bytes(encode(samples, suffix.upper(), Metadata(exif(), icc_profile=PROFILE)))
    loaded = load_image(tmp_path / f"a.{suffix}")
    saved = load_image(save_image(loaded, tmp_path / f"out.{suffix}"))
    expected = samples[:, :, [0, 0, 0, 1]] if (channels, suffix) == (2, "tiff") else samples
    for image in (loaded, saved):
        assert (image.bits, image.notes) == (16, ())
        assert np.array_equal(samples_of(image), expected)


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize(
    "options",
    [
        {"byteorder": ">"},
        {"bigtiff": True},
        {"compression": "zlib"},
        {"compression": "zlib", "predictor": True, "byteorder": ">", "rowsperstrip": 5},
        {"compression": "zlib", "tile": (32, 32), "predictor": True},
        {"tile": (256, 256)},
        {"planarconfig": "separate"},
        {"planarconfig": "separate", "compression": "zlib", "predictor": True},
    ],
    ids=str,
)
def test_tiff_of_others(tmp_path, channels, options):
    samples = deep_samples(channels)
    write_tiff(tmp_path / "a.tiff", samples, **options)
    loaded = load_image(tmp_path / "a.tiff")
    assert (loaded.bits, loaded.alpha is None) == (16, channels == 3)
    assert np.array_equal(samples_of(loaded), samples)


@pytest.mark.parametrize("extra", [{"filters": True}, {"interlace": True}, {"chunk_limit": 1000}], ids=str)
@pytest.mark.parametrize("channels", [2, 3, 4])
def test_png_of_others(tmp_path, channels, extra):
    samples = deep_samples(channels)
    if extra == {"filters": True}:
        (tmp_path / "a.png").write_bytes(png_of(channels, filtered(samples)))
    else:
        kind = {"greyscale": channels == 2, "alpha": channels != 3, "bitdepth": 16, **extra}
        with (tmp_path / "a.png").open("wb") as file:
            png.Writer(WIDTH, HEIGHT, **kind).write(file, samples.reshape(HEIGHT, -1))
    loaded = load_image(tmp_path / "a.png")
    assert loaded.bits == 16
    assert np.array_equal(samples_of(loaded), samples)


@pytest.mark.parametrize("compression", ["raw", "tiff_deflate", "tiff_lzw"])
def test_16_bit_grey_of_others(tmp_path, compression):
    samples = deep_samples(1)[:, :, 0]
    Image.fromarray(samples).save(tmp_path / "a.tiff", compression=compression)
    Image.fromarray(samples).save(tmp_path / "a.png")
    for suffix in ("png", "tiff"):
        loaded = load_image(tmp_path / f"a.{suffix}")
        assert (loaded.bits, loaded.grey) == (16, True)
        assert np.array_equal(samples_of(loaded)[:, :, 0], samples)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_colour_follows_its_orientation(tmp_path, orientation, suffix):
    samples, path = deep_samples(3), tmp_path / f"a.{suffix}"
    if suffix == "png":
        path.write_bytes(encode(samples, "PNG", Metadata(exif(orientation))))
    else:
        write_tiff(path, samples, extratags=[(0x0112, "H", 1, orientation, True)])
    loaded = load_image(path)
    assert np.array_equal(samples_of(loaded), upright(samples, orientation))
    block = Image.Exif()
    block.load(loaded.metadata.exif)
    assert 0x0112 not in block


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_files_are_what_others_read(channels, kind):
    samples = deep_samples(channels)
    data = encode(samples, kind, Metadata(exif(), icc_profile=PROFILE))
    with Image.open(io.BytesIO(data)) as image:
        read = np.asarray(image)
        assert image.info["icc_profile"] == PROFILE
        assert image.getexif().get_ifd(0x8769)[0x9003] == "2024:01:02 03:04:05"
    assert np.array_equal(read, samples[:, :, 0] if channels == 1 else samples >> 8)
    if kind == "TIFF":
        assert np.array_equal(tifffile.imread(io.BytesIO(data)).reshape(samples.shape), samples)
    else:
        rows = np.vstack([np.frombuffer(row, np.uint16) for row in png.Reader(bytes=data).read()[2]])
        assert np.array_equal(rows.reshape(samples.shape), samples)


@pytest.mark.parametrize("kind", ["grey", "colour"])
def test_a_transparent_colour_is_alpha(tmp_path, kind):
    samples = deep_samples(1 if kind == "grey" else 3)
    samples[3:5, 7] = samples[0, 0]
    chunk = (b"tRNS", samples[0, 0].astype(">u2").tobytes())
    chunks = list(png.Reader(bytes=encode_png(samples)).chunks())
    with (tmp_path / "a.png").open("wb") as file:
        png.write_chunks(file, [chunks[0], chunk, *chunks[1:]])
    loaded = load_image(tmp_path / "a.png")
    saved = load_image(save_image(loaded, tmp_path / "out.png"))
    for image in (loaded, saved):
        expected = 65535 * (samples != samples[0, 0]).any(axis=2)
        assert np.array_equal(samples_of(image), np.dstack([samples, expected]))


@pytest.mark.parametrize(("extra", "alpha"), [("unspecified", False), ("assocalpha", True)])
def test_other_fourth_channels(tmp_path, extra, alpha):
    """A channel without a meaning is left out; premultiplied alpha is left to Pillow, which reads 8 bits."""
    samples = deep_samples(4)
    write_tiff(tmp_path / "a.tiff", samples, extrasamples=[extra])
    loaded = load_image(tmp_path / "a.tiff")
    assert (loaded.alpha is not None, loaded.bits) == (alpha, 8 if alpha else 16)
    if not alpha:
        assert np.array_equal(samples_of(loaded), samples[:, :, :3])


def test_lzw(tmp_path):
    """tifffile reads it with imagecodecs only; without, Pillow reads 8 bits, and a note says so."""
    samples = deep_samples(3)
    write_strip(tmp_path / "a.tiff", lzw(samples.astype("<u2").tobytes()))
    with tifffile.TiffFile(tmp_path / "a.tiff", mode="r+") as file:
        file.pages[0].tags["Compression"].overwrite(5)
    loaded = load_image(tmp_path / "a.tiff")
    if find_spec("imagecodecs"):
        assert (loaded.bits, loaded.notes) == (16, ())
        assert np.array_equal(samples_of(loaded), samples)
    else:
        note = "its 16 bits a channel become 8, because its compression (tiff_lzw) needs `pip install imagecodecs`"
        assert (loaded.bits, loaded.notes) == (8, (note,))
        assert np.array_equal((255 * loaded.pixels).round().permute(1, 2, 0).numpy(), samples >> 8)


@pytest.mark.parametrize("kind", ["tiff", "png"])
def test_a_bomb_is_not_inflated(tmp_path, kind):
    """A small file of the right size can hold compressed data without end."""
    path, end = tmp_path / f"a.{kind}", bytes(10**8)
    if kind == "tiff":
        write_strip(path, zlib.compress(end))
    else:
        path.write_bytes(png_of(3, filtered(deep_samples(3)) + end))
    tracemalloc.start()
    try:
        if kind == "tiff":
            with pytest.raises(PrivgenError, match=r"is damaged .*holds more than its part"):
                load_image(path)
        else:
            load_image(path)
        assert tracemalloc.get_traced_memory()[1] < 10**7
    finally:
        tracemalloc.stop()


def test_huge_tiles_are_refused(tmp_path):
    write_tiff(tmp_path / "a.tiff", deep_samples(3), tile=(64, 64), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tiff", mode="r+") as file:
        for name in ("TileWidth", "TileLength"):
            file.pages[0].tags[name].overwrite(50_000)
    with pytest.raises(PrivgenError, match="its tiles are too large"):
        load_image(tmp_path / "a.tiff")


def test_a_volume_does_not_get_past_the_limits(tmp_path):
    """Pillow, by whose size the limits go, does not know of a third dimension."""
    path, depth = tmp_path / "a.tiff", 32997  # a tag of SGI, which tifffile does not write
    write_tiff(path, deep_samples(3), extratags=[(65000, "I", 1, 1000, True)])
    path.write_bytes(path.read_bytes().replace(struct.pack("<HHI", 65000, 4, 1), struct.pack("<HHI", depth, 4, 1)))
    with pytest.raises(PrivgenError, match="its sizes contradict each other"):
        load_image(path)


def test_damaged_exif_costs_only_the_exif(tmp_path):
    samples = deep_samples(3)
    (tmp_path / "a.png").write_bytes(encode(samples, "PNG", Metadata(b"XX" + bytes(20))))
    loaded = load_image(tmp_path / "a.png")
    assert (loaded.metadata.exif, loaded.notes) == (None, ("its EXIF data cannot be read and is not kept",))
    assert np.array_equal(samples_of(loaded), samples)
