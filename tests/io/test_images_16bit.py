import io

import numpy as np
import pytest
from PIL import Image

from privgen.io import images_16bit
from privgen.io.images import load_image, save_image


PROFILE = bytes(16) + b"RGB " + bytes(range(108))


def deep_samples(channels):
    return np.random.default_rng(channels).integers(0, 65536, (48, 64, channels)).astype(np.uint16)


def exif(orientation=1):
    block = Image.Exif()
    block[0x0112], block[0x010F] = orientation, "Maker"
    block.get_ifd(0x8769)[0x9003] = "2024:01:02 03:04:05"
    block.get_ifd(0x8825)[1] = "N"
    return block.tobytes()


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bits_come_back_exactly(tmp_path, channels, suffix):
    samples = deep_samples(channels)
    encode = images_16bit.encode_png if suffix == "png" else images_16bit.encode_tiff
    (tmp_path / f"a.{suffix}").write_bytes(encode(samples, icc_profile=PROFILE, exif=exif()))
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert loaded.bits == 16
    saved = load_image(save_image(loaded, tmp_path / f"out.{suffix}"))
    for image in (loaded, saved):
        colours = samples[:, :, : 1 if channels <= 2 else 3]
        read = (image.pixels * 65535).round().permute(1, 2, 0).numpy()
        assert np.array_equal(read, np.broadcast_to(colours, read.shape))
        if channels in (2, 4):
            assert np.array_equal((image.alpha[0] * 65535).round().numpy(), samples[:, :, -1])


@pytest.mark.parametrize("compression", ["raw", "tiff_deflate", "tiff_lzw"])
def test_16_bit_grey_of_others(tmp_path, compression):
    samples = deep_samples(1)[:, :, 0]
    Image.fromarray(samples).save(tmp_path / "a.tiff", compression=compression)
    Image.fromarray(samples).save(tmp_path / "a.png")
    for suffix in ("png", "tiff"):
        loaded = load_image(tmp_path / f"a.{suffix}")
        assert (loaded.bits, loaded.grey) == (16, True)
        assert np.array_equal((loaded.pixels[0] * 65535).round().numpy(), samples)


def test_16_bit_colour_follows_its_orientation(tmp_path):
    samples = deep_samples(3)
    (tmp_path / "a.png").write_bytes(images_16bit.encode_png(samples, exif=exif(6)))
    loaded = load_image(tmp_path / "a.png")
    assert np.array_equal((loaded.pixels * 65535).round().permute(1, 2, 0).numpy(), np.rot90(samples, -1))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("encode", [images_16bit.encode_png, images_16bit.encode_tiff])
def test_16_bit_files_are_what_others_read(channels, encode):
    samples = deep_samples(channels)
    with Image.open(io.BytesIO(encode(samples, icc_profile=PROFILE, exif=exif()))) as image:
        read = np.asarray(image)
        assert image.info["icc_profile"] == PROFILE
        assert image.getexif().get_ifd(0x8769)[0x9003] == "2024:01:02 03:04:05"
    expected = samples[:, :, 0] if channels == 1 else samples >> 8
    assert np.array_equal(read, expected)
