"""Marks on files and their detection, over every kind of file that cameras, the web and accidents produce."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from privgen.errors import UsageError
from privgen.hub import Placement
from privgen.io import images_16bit
from privgen.io.images import load_image
from privgen.metrics.quality import psnr
from privgen.watermark.key import Key, Secret
from privgen.watermark.networks import Networks
from privgen.watermark.read.detect_files import DetectedFile, detect_files
from privgen.watermark.read.detection import DetectSpec
from privgen.watermark.read.p_values import adjust, p_value
from privgen.watermark.write.embed_files import embed_files
from privgen.watermark.write.mark_spec import MarkSpec


ALICE, BOB = (Key(name, Secret(bytes([number]) * 32)) for number, name in enumerate(("alice", "bob")))
WIDTH, HEIGHT = 240, 180
PSNR = 30.0  # at which the tiny extractor reads nearly everything
LATENT = DetectSpec(carrier="latent")


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, format=kind, **options)
    return file.getvalue()


def animation(image, kind, **options):
    return saved(image, kind, save_all=True, append_images=[image.rotate(180)], **options)


def orientation(value):
    exif = Image.Exif()
    exif[0x0112] = value
    return exif.tobytes()


def deep(image):
    """16-bit samples whose low bytes matter."""
    samples = np.asarray(image).astype(np.uint16) * 257
    return samples ^ np.random.default_rng(0).integers(0, 256, samples.shape).astype(np.uint16)


def with_alpha(image):
    image = image.copy()
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""
    chunk = lambda name, data: struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))  # noqa: E731
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(100)))


# Name: (file of a photo, mode of the result, what a user is told).
GOOD = {
    "rgb.png": (lambda x: saved(x, "PNG"), "RGB", ""),
    "photo.jpg": (lambda x: saved(x, "JPEG", quality=95), "RGB", ""),
    "web.webp": (lambda x: saved(x, "WEBP", lossless=True), "RGB", ""),
    "alpha.png": (lambda x: saved(with_alpha(x), "PNG"), "RGBA", ""),
    "palette.png": (lambda x: saved(x.quantize(256), "PNG"), "RGB", "palette colours become full colour"),
    "cmyk.jpg": (lambda x: saved(x.convert("CMYK"), "JPEG", quality=95), "RGB", "CMYK becomes RGB"),
    "rotated.jpg": (lambda x: saved(x.rotate(90, expand=True), "JPEG", quality=95, exif=orientation(6)), "RGB", ""),
    "deep.png": (lambda x: images_16bit.encode_png(deep(x)), "16 bits", ""),
    "animated.gif": (lambda x: animation(x, "GIF"), "RGB", "animated: the first frame is used"),
    "animated.webp": (lambda x: animation(x, "WEBP", lossless=True), "RGBA", "animated: the first frame is used"),
    "no suffix": (lambda x: saved(x, "PNG"), "RGB", ""),
}  # fmt: skip
GREY = {
    "grey.png": (lambda x: saved(x.convert("L"), "PNG"), "L", ""),
    "grey_alpha.png": (lambda x: saved(with_alpha(x.convert("L")), "PNG"), "LA", ""),
    "grey_deep.png": (lambda x: saved(Image.fromarray(deep(x.convert("L"))), "PNG"), "I;16", ""),
}
BAD = {
    "text.png": (lambda x: b"not an image", "is not an image in PNG"),
    "empty.png": (lambda x: b"", "is empty"),
    "truncated.jpg": (lambda x: saved(x, "JPEG")[:4000], "is damaged or cut short"),
    "truncated.png": (lambda x: saved(x, "PNG")[:4000], "is damaged or cut short"),
    "one.png": (lambda x: png_header(1, 1), "has 1 x 1 pixels; each side must have at least 16"),
    "thin.png": (lambda x: png_header(20_000, 10), "has 20000 x 10 pixels; each side must have"),
    "long.png": (lambda x: png_header(20_000, 20), "crop it to sides at most 1 : 50"),
    "large.png": (lambda x: png_header(10_000, 10_000), "more than the 89,478,485 allowed"),
    "bomb.png": (lambda x: png_header(2**31 - 1, 2**31 - 1), "more pixels than can be decoded safely"),
    "missing.png": (lambda x: None, "does not exist; check the path"),
}


@pytest.fixture(scope="module")
def photo(photo_files):
    with Image.open(photo_files[3]) as image:
        return image.convert("RGB").resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, photo):
    """A folder with all kinds of files, good and bad."""
    folder = tmp_path_factory.mktemp("inputs")
    for name, (make, *_) in {**GOOD, **GREY, **BAD}.items():
        data = make(photo)
        if data is not None:
            (folder / name).write_bytes(data)
    return folder


@pytest.fixture(scope="module")
def model(marked_model):
    return Networks(str(marked_model), Placement("cpu"))


@pytest.fixture(scope="module")
def embedded(inputs, model):
    """Result of one batch over all of them, and what was reported on the way."""
    paths, seen = [inputs / name for name in (*GOOD, *GREY, *BAD)], []
    output = inputs.with_name("marked")
    result = embed_files(paths, output, ALICE, networks=model, spec=MarkSpec("latent", PSNR), report=seen.append)
    return result, seen


@pytest.fixture(scope="module")
def detected(inputs, embedded, model):
    """The marked files and the bad ones, each read with two keys."""
    paths = [file.output or file.source for file in embedded[0].files]
    return detect_files(paths, [BOB, ALICE], networks=model, spec=LATENT)


def result_of(files, name):
    return next(file for file in files if (getattr(file, "source", None) or file.file).endswith(name))


@pytest.mark.parametrize("name", [*GOOD, *GREY])
def test_good_files_come_back_as_they_were(inputs, embedded, name):
    _, mode, note = {**GOOD, **GREY}[name]
    file = result_of(embedded[0].files, name)
    assert file.status == "done", file.error
    assert note in " ".join(file.notes)
    before, after = load_image(inputs / name), load_image(file.output)
    assert (after.width, after.height) == (WIDTH, HEIGHT)
    assert after.bits == before.bits == (16 if "deep" in name else 8)
    assert after.mode == ("RGB" if mode == "16 bits" else mode)
    assert (after.alpha is None) == (before.alpha is None)
    assert after.alpha is None or torch.equal(after.alpha, before.alpha)
    measured = float(psnr(after.pixels[None], before.pixels[None]))
    assert measured == pytest.approx(PSNR, abs=0.1)
    assert measured == pytest.approx(file.psnr, abs=0.01)


@pytest.mark.parametrize("name", GOOD)
def test_marks_are_detected(embedded, detected, name):
    place = [*GOOD, *GREY, *BAD].index(name)
    file, read = embedded[0].files[place], detected[place]
    assert read.file == file.output
    found = read.detection
    assert (found.detected, found.key, found.key_id) == (True, "alice", ALICE.key_id)
    assert found.best.matches >= found.threshold
    assert [match.detected for match in found.keys] == [False, True]
    assert [region.key for region in found.regions] == ["alice"]
    assert abs(file.matches - found.best.matches) <= 1


@pytest.mark.parametrize("name", BAD)
def test_bad_files_are_named(inputs, embedded, detected, name):
    _, why = BAD[name]
    file = result_of(embedded[0].files, name)
    assert (file.status, file.output) == ("failed", None)
    for result in (file, result_of(detected, name)):
        assert why in result.error
        assert str(inputs / name) in result.error
        assert "\n" not in result.error
        assert result.error.endswith(".")
    assert result_of(detected, name) == DetectedFile(str(inputs / name), error=result.error)


def test_the_rest_of_the_batch_is_done(embedded):
    result, seen = embedded
    assert (result.count("done"), result.count("failed")) == (len(GOOD) + len(GREY), len(BAD))
    assert tuple(seen) == result.files
    assert (result.key, result.key_id, result.carrier) == ("alice", ALICE.key_id, "latent")


@pytest.mark.parametrize("test", ["weighted", "binomial"])
def test_figures_of_a_detection(inputs, embedded, model, test):
    marked = embedded[0].files[0].output
    (file,) = detect_files([marked], [BOB, ALICE], networks=model, spec=DetectSpec(test=test, carrier="latent"))
    read = file.detection
    bits = [int(bit) for bit in read.bits]
    adjusted = adjust([match.p_value for match in read.keys], "holm")
    for match, key, expected in zip(read.keys, (BOB, ALICE), adjusted, strict=True):
        assert match.matches == sum(a == b for a, b in zip(bits, key.bits(), strict=True))
        if test == "binomial":
            assert match.p_value == float(p_value(match.matches, 48))
        assert match.p_adjusted == expected
    assert read.best == read.keys[1]
    assert (read.p_value, read.n_bits, read.threshold) == (read.best.p_adjusted, 48, 41)
    record = file.record()
    assert (record["file"], record["test"], record["fpr"], record["best_match"]) == (marked, test, 1e-6, "alice")


def test_unmarked_files(inputs, model):
    files = detect_files([inputs / "rgb.png", inputs / "deep.png"], [ALICE, ALICE], networks=model, spec=LATENT)
    assert [file.detected for file in files] == [False, False]
    assert [len(file.detection.keys) for file in files] == [1, 1]
    assert all(file.detection.p_value > 1e-4 for file in files)
    assert all((file.detection.key, file.detection.regions) == (None, ()) for file in files)
    assert str(files[0].detection).startswith("does not carry the mark of alice (")


def test_a_rate_that_so_few_bits_cannot_show(inputs, model):
    with pytest.raises(
        UsageError, match=r"bits of 2 keys cannot show a rate below 7\.1e-15; allow a larger one, or look for tiles"
    ):
        detect_files([inputs / "rgb.png"], [ALICE, BOB], networks=model, spec=DetectSpec(fpr=5e-15, carrier="latent"))
    with pytest.raises(UsageError, match="at least one key"):
        detect_files([inputs / "rgb.png"], [], networks=model)
