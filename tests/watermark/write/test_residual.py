import math

import pytest
import torch

from privgen.hub import load_extra, load_pipeline
from privgen.io.images import LoadedImage, encode_image, from_pil, load_image, to_pil
from privgen.io.residual import add_residual, to_canvas
from privgen.metrics.quality import psnr
from privgen.watermark.read.logits import read_logits
from privgen.watermark.write.mark_spec import NETWORK_PSNR as PSNR
from privgen.watermark.write.residual import latent_residuals


SIZE = 32


@pytest.fixture(scope="module")
def vae(marked_model):
    return load_pipeline(marked_model, device="cpu").vae


@pytest.fixture(scope="module")
def latent_mapper(marked_model):
    return load_extra("latent_mapper", marked_model, device="cpu")


@pytest.fixture(scope="module")
def extractor(marked_model):
    return load_extra("extractor", marked_model, device="cpu")


@pytest.fixture(scope="module")
def photos(photo_files):
    """Twenty photographs of different sizes."""
    return [load_image(path).pixels for path in photo_files[:20]]


@pytest.fixture(scope="module")
def bits():
    return torch.randint(2, (20, 48), generator=torch.Generator().manual_seed(7))


@pytest.fixture
def mark(vae, latent_mapper):
    return lambda pixels, bits, **options: mark_images([pixels], bits[None], vae, latent_mapper, **options)[0]


def mark_images(images, bits, vae, latent_mapper, **options):
    residuals = latent_residuals(to_canvas(images, SIZE), bits, vae=vae, latent_mapper=latent_mapper)
    options = {"psnr": PSNR} | options
    return [add_residual(pixels, residual, **options) for pixels, residual in zip(images, residuals, strict=True)]


def accuracy(images, bits, extractor):
    return float(((read_logits(images, extractor) > 0) == (bits > 0)).float().mean())


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_residual_is_the_decoded_difference(vae, latent_mapper, photos, bits):
    canvases = to_canvas(photos[:3], SIZE)
    z = vae.encode(2 * canvases - 1).latent_dist.mode()
    residual = latent_mapper(bits[:3], height=16, width=16) / vae.config.scaling_factor
    with torch.no_grad():
        expected = (vae.decode(z + residual).sample - vae.decode(z).sample) / 2
    actual = latent_residuals(canvases, bits[:3], vae=vae, latent_mapper=latent_mapper)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("quality", [30, 39, 45])
def test_quality_is_met_at_own_size(mark, photos, bits, quality):
    for pixels in photos[:4]:
        marked = mark(pixels, bits[0], psnr=quality)
        assert marked.pixels.shape == pixels.shape
        assert 0 <= marked.pixels.min() <= marked.pixels.max() <= 1
        measured = float(psnr(marked.pixels[None], pixels[None]))
        assert measured == pytest.approx(quality, abs=0.05)
        assert measured == pytest.approx(marked.psnr, abs=1e-3)


@pytest.mark.parametrize("quality", [39, 50])
def test_quality_is_met_in_the_file_too(mark, photos, bits, quality):
    """Rounding to 8 bits adds an error of its own, 0.5 dB at 50 dB."""
    residual = noise(3, SIZE, SIZE)
    marked = add_residual(photos[0], residual, psnr=quality, levels=255)
    saved = from_pil(to_pil(marked.pixels)).pixels
    torch.testing.assert_close(saved, marked.pixels, rtol=0, atol=1e-6)
    assert float(psnr(saved[None], photos[0][None])) == pytest.approx(quality, abs=0.05)


def test_without_a_quality_the_difference_is_added_as_it_is():
    pixels, residual = torch.full((3, 20, 20), 0.5), 0.01 * noise(3, 20, 20)
    marked = add_residual(pixels, residual, psnr=None)
    torch.testing.assert_close(marked.pixels, pixels + residual, rtol=0, atol=1e-7)
    assert marked.gain == 1


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 800), (33, 21), (700, 1300)])
def test_any_size(mark, bits, height, width):
    pixels = torch.rand(3, height, width, generator=torch.Generator().manual_seed(0))
    marked = mark(pixels, bits[0])
    assert marked.pixels.shape == pixels.shape
    assert marked.psnr == pytest.approx(PSNR, abs=0.01)


def test_strips_do_not_show(mark, photos, bits, monkeypatch):
    whole = mark(photos[0], bits[0])
    monkeypatch.setattr("privgen.io.pixels._STRIP", 1000)
    strips = mark(photos[0], bits[0])
    torch.testing.assert_close(strips.pixels, whole.pixels, rtol=0, atol=1e-6)


def test_round_trip(vae, latent_mapper, extractor, photos, bits):
    marked = mark_images(photos, bits, vae, latent_mapper, psnr=26)
    saved = [from_pil(to_pil(image.pixels)) for image in marked]
    assert accuracy(saved, bits, extractor) > 0.95
    assert accuracy(photos, bits, extractor) == pytest.approx(0.5, abs=0.1)


def test_saturated_photos(mark, extractor, bits):
    """Half of the difference is clipped; the other half makes up for it."""
    for pixels in (torch.ones(3, 60, 90), torch.zeros(3, 60, 90)):
        marked = mark(pixels, bits[0])
        assert marked.psnr == pytest.approx(PSNR, abs=0.01)
        assert marked.pixels.isfinite().all()


def test_no_room_and_no_difference():
    white = torch.ones(3, 20, 20)
    brighter = add_residual(white, torch.ones(3, 20, 20), psnr=38.1)
    nothing = add_residual(white, torch.zeros(3, 20, 20), psnr=38.1)
    for marked in (brighter, nothing):
        assert torch.equal(marked.pixels, white)
        assert marked.psnr == math.inf


def test_grey_photos(mark, photos, bits):
    """Saved by luminance, a grey photo loses nothing of a mark that has no colour."""
    for pixels in photos[:5]:
        grey = from_pil(to_pil(pixels).convert("L"))
        marked = mark(grey.pixels, bits[0], grey=True, psnr=33)
        assert torch.equal(marked.pixels[0], marked.pixels[1])
        assert torch.equal(marked.pixels[0], marked.pixels[2])
        saved = from_pil(to_pil(LoadedImage(marked.pixels, grey=True)))
        assert (saved.pixels - marked.pixels).abs().max() <= 0.5 / 255 + 1e-6
        assert float(psnr(saved.pixels[None], grey.pixels[None])) == pytest.approx(33, abs=0.1)


def test_many_are_as_one(vae, latent_mapper, mark, photos, bits):
    together = mark_images(photos[:3], bits[:3], vae, latent_mapper)
    for image, pixels, message in zip(together, photos, bits, strict=False):
        torch.testing.assert_close(image.pixels, mark(pixels, message).pixels, rtol=0, atol=1e-4)


def test_one_message_for_all(vae, latent_mapper, photos, bits):
    canvases = to_canvas(photos[:3], SIZE)
    one = latent_residuals(canvases, bits[:1], vae=vae, latent_mapper=latent_mapper)
    three = latent_residuals(canvases, bits[:1].expand(3, -1), vae=vae, latent_mapper=latent_mapper)
    torch.testing.assert_close(one, three, rtol=0, atol=1e-6)  # kernels differ with the batch


def test_reading_many_is_reading_each(extractor, photos):
    alone = torch.cat([read_logits([pixels], extractor) for pixels in photos])
    torch.testing.assert_close(read_logits(photos, extractor, batch_size=1), alone, rtol=1e-5, atol=1e-5)
    for batch_size in (7, 20, 100):
        together = read_logits(iter(photos), extractor, batch_size=batch_size)
        torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)
    with torch.no_grad():
        torch.testing.assert_close(alone[:1], extractor(photos[0][None]), rtol=1e-5, atol=1e-5)


def test_reading_takes_tensors_and_loaded_images(extractor, photos):
    batch = to_canvas(photos[:4], 60)
    assert torch.equal(read_logits(batch, extractor), read_logits([LoadedImage(image) for image in batch], extractor))


@pytest.mark.parametrize("kind", ["JPEG", "WEBP"])
def test_mark_survives_the_web(mark, extractor, photos, bits, tmp_path, kind):
    marked = mark(photos[0], bits[0], psnr=33)
    (tmp_path / "a").write_bytes(encode_image(LoadedImage(marked.pixels), kind, quality=90))
    assert accuracy([load_image(tmp_path / "a")], bits[:1], extractor) > 0.9


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: add_residual(torch.zeros(1, 9, 9), torch.zeros(3, 8, 8), psnr=9), r"width\), got \(1, 9, 9\)"),
        (lambda: add_residual(torch.zeros(3, 9, 9), torch.zeros(3, 8, 8), psnr=0), "above 0 dB, got 0"),
        (lambda: add_residual(torch.zeros(3, 9, 9), torch.zeros(3, 8, 8), psnr=math.nan), "above 0 dB, got nan"),
        (lambda: to_canvas([torch.zeros(3, 0, 9)], SIZE), r"got \(3, 0, 9\)"),
        (lambda: read_logits([], torch.nn.Identity()), "at least one image"),
        (lambda: read_logits([torch.zeros(9, 9)], torch.nn.Identity()), r"got \(9, 9\)"),
    ],
)  # fmt: skip
def test_wrong_calls(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_wrong_number_of_messages(vae, latent_mapper, photos, bits):
    with pytest.raises(ValueError, match="one message or 3, got 2"):
        mark_images(photos[:3], bits[:2], vae, latent_mapper)
