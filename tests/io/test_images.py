from functools import cache

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms, ImageOps

from privgen.errors import PrivgenError
from privgen.io.images import LoadedImage, from_pil, load_image, save_image, to_pil


WIDTH, HEIGHT = 64, 48
LOSSLESS = ["png", "tiff", "webp"]


def picture(mode="RGB"):
    """Smooth enough for lossy formats, and different in every corner and channel."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = np.stack([x * 3, y * 5, (x + y) * 2, 55 + x + 2 * y], axis=-1).astype(np.uint8)
    rgba = Image.fromarray(planes)
    if mode == "P":
        return rgba.convert("RGB").quantize(64)
    return rgba.convert(mode)


@cache
def profile():
    """The same all along: a new one holds the time of its making."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def fake_profile(space):
    """A block that says which channels it is for, as far as anyone looks."""
    return profile()[:16] + space + profile()[20:]


def exif(orientation=1):
    block = Image.Exif()
    block[0x0112], block[0x010F] = orientation, "Maker"
    block.get_ifd(0x8769)[0x9003] = "2024:01:02 03:04:05"
    block.get_ifd(0x8825)[1] = "N"
    return block.tobytes()


def tensor_of(image):
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1) / 255


# Reading


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_pixels_are_those_of_the_file(tmp_path, suffix):
    picture().save(tmp_path / f"a.{suffix}")
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert loaded.pixels.dtype == torch.float32
    torch.testing.assert_close(loaded.pixels, tensor_of(picture()), rtol=0, atol=0)
    assert (loaded.width, loaded.height, loaded.mode, loaded.bits) == (WIDTH, HEIGHT, "RGB", 8)
    assert (loaded.alpha, loaded.grey, loaded.notes) == (None, False, ())


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_followed_and_removed(tmp_path, suffix, orientation):
    stored = picture()
    stored.save(tmp_path / f"a.{suffix}", exif=exif(orientation), **({"quality": 95} if suffix != "tiff" else {}))
    tagged = Image.Exif()
    tagged[0x0112] = orientation
    stored.info["exif"] = tagged.tobytes()
    upright = ImageOps.exif_transpose(stored)

    loaded = load_image(tmp_path / f"a.{suffix}")
    assert (loaded.width, loaded.height) == upright.size
    torch.testing.assert_close(loaded.pixels, tensor_of(upright), rtol=0, atol=0.05)
    block = Image.Exif()
    block.load(loaded.metadata.exif)
    assert 0x0112 not in block
    assert block[0x010F] == "Maker"


@pytest.mark.parametrize(
    ("mode", "grey", "alpha", "notes"),
    [
        ("1", True, False, ()),
        ("L", True, False, ()),
        ("LA", True, True, ()),
        ("RGB", False, False, ()),
        ("RGBA", False, True, ()),
        ("P", False, False, ("palette colours become full colour",)),
    ],
)
def test_modes(tmp_path, mode, grey, alpha, notes):
    image = picture(mode)
    image.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    assert (loaded.mode, loaded.grey, loaded.alpha is not None, loaded.notes) == (mode, grey, alpha, notes)
    torch.testing.assert_close(loaded.pixels, tensor_of(image), rtol=0, atol=0)
    if alpha:
        expected = torch.from_numpy(np.array(image.getchannel("A")))[None] / 255
        torch.testing.assert_close(loaded.alpha, expected, rtol=0, atol=0)


@pytest.mark.parametrize("mode", ["P", "RGB", "L"])
def test_transparent_colour_is_alpha(tmp_path, mode):
    image = picture(mode)
    image.save(tmp_path / "a.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    loaded = load_image(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as opened:
        expected = np.array(opened.convert("RGBA").getchannel("A"))
    assert 0 < (expected == 0).sum() < expected.size
    assert np.array_equal(loaded.alpha[0].numpy() * 255, expected)


@pytest.mark.parametrize("suffix", ["jpg", "tiff"])
def test_cmyk_becomes_rgb(tmp_path, suffix):
    image = picture("CMYK")
    image.save(tmp_path / f"a.{suffix}", **({"quality": 95} if suffix == "jpg" else {}))
    loaded = load_image(tmp_path / f"a.{suffix}")
    torch.testing.assert_close(loaded.pixels, tensor_of(image), rtol=0, atol=0.03)
    assert (loaded.mode, loaded.notes) == ("CMYK", ("CMYK becomes RGB",))
    written = save_image(loaded, tmp_path / "out.jpg")
    with Image.open(written) as again:
        assert again.mode == "RGB"


def test_profile_of_other_channels_is_left_out(tmp_path):
    picture("CMYK").save(tmp_path / "a.jpg", icc_profile=fake_profile(b"CMYK"))
    with Image.open(save_image(load_image(tmp_path / "a.jpg"), tmp_path / "out.jpg")) as again:
        assert "icc_profile" not in again.info


def test_lab_becomes_srgb(tmp_path):
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    image = picture()
    ImageCms.profileToProfile(image, srgb, lab, outputMode="LAB").save(tmp_path / "a.tiff")
    loaded = load_image(tmp_path / "a.tiff")
    assert (loaded.pixels - tensor_of(image)).abs().mean() < 0.02


@pytest.mark.parametrize(
    ("options", "suffix", "note"),
    [
        ({}, "gif", "animated: the first frame is used"),
        ({}, "webp", "animated: the first frame is used"),
        ({}, "png", "animated: the first frame is used"),
        ({}, "tiff", "several pages: the first is used"),
        ({"format": "MPO"}, "jpg", "several pictures: the first is used"),
    ],
)
def test_first_of_several_frames(tmp_path, options, suffix, note):
    first, second = picture(), ImageOps.invert(picture())
    first.save(tmp_path / f"a.{suffix}", save_all=True, append_images=[second], **options)
    loaded = load_image(tmp_path / f"a.{suffix}")
    assert note in loaded.notes
    assert (loaded.pixels - tensor_of(first)).abs().mean() < 0.03


@pytest.mark.parametrize(
    ("shape", "dtype"), [((32, 32), "float32"), ((32, 32, 3), "float32"), ((32, 32, 3), "uint32")]
)
def test_samples_of_unknown_range_are_refused(tmp_path, shape, dtype):
    colour = "rgb" if len(shape) == 3 else "minisblack"
    tifffile.imwrite(tmp_path / "a.tiff", np.zeros(shape, dtype), photometric=colour)
    with pytest.raises(PrivgenError, match=r"a\.tiff has 32-bit samples, whose range is unknown; convert it"):
        load_image(tmp_path / "a.tiff")


def test_raw_files_are_refused(tmp_path):
    """They are TIFF files, of which Pillow would read the small preview."""
    picture().save(tmp_path / "a.NEF", format="TIFF")
    with pytest.raises(PrivgenError, match=r"a\.NEF is a camera's raw file; develop it"):
        load_image(tmp_path / "a.NEF")


def test_damaged_exif_costs_only_the_exif(tmp_path):
    picture().save(tmp_path / "a.png", exif=b"Exif\0\0XX" + bytes(20))
    loaded = load_image(tmp_path / "a.png")
    torch.testing.assert_close(loaded.pixels, tensor_of(picture()))
    assert (loaded.metadata.exif, loaded.notes) == (None, ("its EXIF data cannot be read and is not kept",))


# Pillow and tensors


@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_pil_round_trip(mode):
    image = picture(mode)
    again = to_pil(from_pil(image))
    assert again.mode == mode
    assert np.array_equal(np.asarray(again), np.asarray(image))


def test_pil_limits():
    with pytest.raises(PrivgenError, match="image has 8 x 8 pixels"):
        from_pil(Image.new("RGB", (8, 8)))


@pytest.mark.parametrize("shape", [(1, 3, 16, 16), (16, 16, 3), (16, 16)])
def test_shapes_are_checked(shape):
    with pytest.raises(ValueError, match=r"expected pixels of shape \(3, height, width\)"):
        LoadedImage(torch.zeros(shape))


def test_repr_is_short(tmp_path):
    picture("RGBA").save(tmp_path / "a.png")
    assert repr(load_image(tmp_path / "a.png")) == "LoadedImage(64 x 48, PNG, RGBA, 8 bits, alpha, notes=())"
