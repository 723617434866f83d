import io
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms

from privgen.errors import PrivgenError
from privgen.io.images import LoadedImage, encode_image, from_bytes, from_pil, load_image, save_image, to_pil


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


@pytest.mark.parametrize("suffix", LOSSLESS)
@pytest.mark.parametrize("mode", ["L", "LA", "RGB", "RGBA"])
def test_comes_back_as_it_was(tmp_path, suffix, mode):
    space = b"GRAY" if mode[0] == "L" and suffix != "webp" else b"RGB "
    picture(mode).save(tmp_path / "a.png", icc_profile=fake_profile(space), exif=exif(3))
    loaded = load_image(tmp_path / "a.png")
    again = load_image(save_image(loaded, tmp_path / f"out.{suffix}", quality=100))
    torch.testing.assert_close(again.pixels, loaded.pixels, rtol=0, atol=0)
    assert (again.alpha is None) == (mode[-1] != "A")
    if again.alpha is not None:
        torch.testing.assert_close(again.alpha, loaded.alpha, rtol=0, atol=0)
    assert again.grey == (mode[0] == "L" and suffix != "webp")
    assert again.metadata.icc_profile == fake_profile(space)
    block = Image.Exif()
    block.load(again.metadata.exif)
    assert 0x0112 not in block
    assert block.get_ifd(0x8769)[0x9003] == "2024:01:02 03:04:05"
    assert block.get_ifd(0x8825)[1] == "N"


def test_jpeg_keeps_profile_and_exif(tmp_path):
    picture().save(tmp_path / "a.jpg", icc_profile=profile(), exif=exif(8))
    loaded = load_image(tmp_path / "a.jpg")
    again = load_image(save_image(loaded, tmp_path / "out.jpg"))
    assert (again.width, again.height) == (HEIGHT, WIDTH)
    assert (again.metadata.icc_profile, again.metadata.exif) == (profile(), loaded.metadata.exif)


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "webp", "tif", "tiff", "bmp", "PNG"])
def test_formats_by_suffix(tmp_path, suffix):
    path = save_image(tensor_of(picture()), tmp_path / f"out.{suffix}")
    with Image.open(path) as image:
        assert image.format == {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix.upper())
    error = (load_image(path).pixels - tensor_of(picture())).abs().mean()
    assert error <= (0.01 if suffix in ("jpg", "jpeg", "webp") else 0)


def test_tiff_tags_do_not_travel(tmp_path):
    loaded = load_image(save_image(from_pil(picture()), tmp_path / "a.tiff"))
    assert loaded.metadata.exif is None


def test_like_brings_everything_but_pixels(tmp_path):
    picture("RGBA").save(tmp_path / "a.png", exif=exif())
    loaded = load_image(tmp_path / "a.png")
    marked = loaded.pixels * 0.5
    again = load_image(save_image(marked, tmp_path / "out.png", like=loaded))
    torch.testing.assert_close(again.pixels, marked, rtol=0, atol=0.5 / 255 + 1e-6)
    torch.testing.assert_close(again.alpha, loaded.alpha)
    assert again.metadata.exif
    with pytest.raises(ValueError, match=r"expected alpha of shape \(1, 20, 20\), got"):
        save_image(torch.zeros(3, 20, 20), tmp_path / "other.png", like=loaded)


def test_grey_stays_grey_by_luminance(tmp_path):
    picture("L").save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    change = torch.tensor([0.1, 0.0, 0.0])[:, None, None]
    again = load_image(save_image(loaded.pixels * 0.8 + change, tmp_path / "out.png", like=loaded))
    assert again.mode == "L"
    torch.testing.assert_close(again.pixels, loaded.pixels * 0.8 + 0.0299, rtol=0, atol=0.5 / 255 + 1e-6)


def test_colour_below_transparency_is_kept(tmp_path):
    image = picture("RGBA")
    image.putalpha(0)
    image.save(tmp_path / "a.png")
    loaded = load_image(tmp_path / "a.png")
    for suffix in LOSSLESS:
        again = load_image(save_image(loaded, tmp_path / f"out.{suffix}", quality=100))
        torch.testing.assert_close(again.pixels, loaded.pixels, rtol=0, atol=0)


@pytest.mark.parametrize("suffix", ["jpg", "bmp"])
def test_formats_without_transparency(tmp_path, suffix):
    clear, opaque = from_pil(picture("RGBA")), from_pil(picture().convert("RGBA"))
    assert opaque.alpha is not None
    save_image(opaque, tmp_path / f"opaque.{suffix}")
    with pytest.raises(
        PrivgenError, match=r"clear\.\w+ cannot be written as \w+ \(it cannot hold transparency\); choose"
    ):
        save_image(clear, tmp_path / f"clear.{suffix}")
    assert not (tmp_path / f"clear.{suffix}").exists()


@pytest.mark.parametrize(
    ("name", "image", "match"),
    [
        ("out.xyz", torch.zeros(3, 16, 16), r"out\.xyz has no suffix of an image to write; use one of \.png, "),
        ("out", torch.zeros(3, 16, 16), "has no suffix of an image to write"),
        ("out.webp", torch.zeros(3, 16, 16_400), r"cannot be written as WEBP \(.*\); choose another suffix"),
        (
            "out.png",
            torch.full((3, 16, 16), float("nan")),
            r"out\.png was not written: its pixels are NaN or infinite",
        ),
    ],
)
def test_cannot_be_written(tmp_path, name, image, match):
    with pytest.raises(PrivgenError, match=match):
        save_image(image, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_existing_output(tmp_path):
    path = tmp_path / "out.png"
    path.write_bytes(b"precious")
    with pytest.raises(PrivgenError, match=r"out\.png exists; choose another path, or pass --overwrite"):
        save_image(torch.zeros(3, 16, 16), path)
    assert path.read_bytes() == b"precious"
    save_image(torch.zeros(3, 16, 16), path, overwrite=True)
    assert load_image(path).pixels.sum() == 0


def test_full_disk_leaves_nothing(tmp_path, python):
    pytest.importorskip("resource")
    code = f"""
import resource, torch
from privgen.io.images import save_image
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
save_image(torch.rand(3, 64, 64), {str(tmp_path / "out.png")!r})
"""
    result = python("-c", code)
    assert "out.png was not written: the file is larger than allowed" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_values_are_clipped_and_rounded():
    pixels = torch.tensor([-1.0, 0.0, 0.4 / 255, 0.6 / 255, 1.0, 2.0])[:, None].expand(3, 6, 1)
    assert np.asarray(to_pil(pixels))[:, 0, 0].tolist() == [0, 0, 0, 1, 255, 255]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("quality", [75, 95, 100])
def test_noise_fits(kind, quality, generator):
    """What cannot be compressed outgrows the buffers that encoders start with."""
    pixels = torch.rand(3, 400, 600, generator=generator)
    with Image.open(io.BytesIO(encode_image(LoadedImage(pixels), kind, quality=quality))) as image:
        assert np.asarray(image).std() > 50


@pytest.mark.parametrize("quality", [89, 90])
def test_jpeg_keeps_full_colour_resolution_at_high_quality(quality):
    data = encode_image(from_pil(picture()), "JPEG", quality=quality)
    with Image.open(io.BytesIO(data)) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1) if quality == 90 else (2, 2), (1, 1), (1, 1)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("images")


@given(
    kind=st.sampled_from(["PNG", "TIFF"]),
    bits=st.sampled_from([8, 16]),
    channels=st.integers(1, 4),
    height=st.integers(16, 40),
    width=st.integers(16, 40),
    seed=st.integers(0, 2**32 - 1),
    few=st.booleans(),
)
def test_lossless_round_trip(folder, kind, bits, channels, height, width, seed, few):
    """Whatever the mode and precision, the numbers in a file are those that were saved."""
    top = 2**bits - 1
    rng = np.random.default_rng(seed)
    shape = (channels, height, width)
    samples = rng.integers(0, 3, shape) * (top // 2) if few else rng.integers(0, top + 1, shape)
    planes = torch.from_numpy(samples).float() / top
    pixels = planes[:1].expand(3, -1, -1) if channels <= 2 else planes[:3]
    image = LoadedImage(pixels, planes[-1:] if channels in (2, 4) else None, grey=channels <= 2, bits=bits)
    (folder / "image").write_bytes(encode_image(image, kind))
    loaded = load_image(folder / "image")
    # 16-bit TIFF has no grey with alpha that others read: it is RGBA.
    assert (loaded.bits, loaded.grey) == (bits, image.grey and (kind, bits, channels) != ("TIFF", 16, 2))
    assert torch.equal((loaded.pixels * top).round().long(), (pixels * top).round().long())
    assert (loaded.alpha is None) == (image.alpha is None)
    if loaded.alpha is not None:
        assert torch.equal((loaded.alpha[0] * top).round().long(), torch.from_numpy(samples[-1]))


def test_what_was_just_encoded_is_decoded_at_any_size(monkeypatch):
    """Pillow refuses files of more than twice its limit, also one that was made a moment ago."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", WIDTH * HEIGHT // 3)
    image = from_pil(picture())
    assert torch.equal(from_bytes(encode_image(image, "PNG")).stored, image.stored)
    assert Image.MAX_IMAGE_PIXELS == WIDTH * HEIGHT // 3
