"""Screenshots, captions, chat apps and upload chains."""

import io
from importlib.resources import files

import numpy as np
import pytest
import torch
from PIL import Image

from privgen.attacks import JPEG, Caption, Instagram, Screenshot, Telegram, UploadChain, WeChat, WhatsApp
from privgen.attacks.distortions.codecs import encode_at_most
from privgen.io.pixels import resize


@pytest.fixture(scope="module")
def large(pictures):
    """(1, 3, 1500, 2000), detailed like a photograph of a phone."""
    return pictures(1, 1500, 2000)


def levels_of(image):
    return image.mul(255).round().byte().permute(1, 2, 0).numpy()


@pytest.mark.parametrize(
    ("attack", "size"),
    [(WhatsApp(), (1200, 1600)), (Telegram(), (960, 1280)), (Instagram(), (904, 1206)), (WeChat(), (1233, 1644))],
    ids=repr,
)
def test_chat_apps_shrink_to_their_longest_side(attack, size, large):
    assert attack(large).shape[-2:] == size
    assert attack(large.mT).shape[-2:] == size[::-1]
    small = large[..., :70, :90]
    assert attack(small).shape == small.shape


def test_a_direct_message_of_three_to_two_has_1206_by_804_pixels():
    assert Instagram()(torch.rand(1, 3, 1280, 1920)).shape[-2:] == (804, 1206)


def test_small_images_only_go_through_the_codec(pictures):
    images = pictures(2, 40, 60)
    assert torch.equal(Telegram()(images), JPEG(87)(images))
    assert torch.equal(WhatsApp()(images), JPEG(80)(images))
    assert torch.equal(WeChat(2)(images), JPEG(75).repeat(2)(images))


def test_whatsapp_lowers_the_quality_until_the_file_fits(large):
    sent = WhatsApp()(large)[0]
    shrunk = levels_of(resize(large, (1200, 1600)).clamp(0, 1)[0])
    assert len(encode_at_most(shrunk, "JPEG", 80)) > 317_000
    data = encode_at_most(shrunk, "JPEG", 80, at_most=317_000)
    assert 300_000 < len(data) <= 317_000
    assert np.array_equal(levels_of(sent), np.asarray(Image.open(io.BytesIO(data))))
    unlimited = levels_of(WhatsApp(kilobytes=None)(large)[0])
    assert np.array_equal(unlimited, np.asarray(Image.open(io.BytesIO(encode_at_most(shrunk, "JPEG", 80)))))


def test_each_image_of_a_batch_has_its_own_quality(pictures, seeded):
    smooth, noisy = pictures(1, 64, 64), torch.rand(1, 3, 64, 64, generator=seeded(0))
    both = WhatsApp(kilobytes=3)(torch.cat([smooth, noisy]))
    assert torch.equal(both[:1], JPEG(80)(smooth))
    assert torch.equal(both[1:], WhatsApp(kilobytes=3)(noisy))
    assert not torch.equal(both[1:], JPEG(80)(noisy))


@pytest.mark.parametrize("limit", [1500, 3000, 6000])
def test_the_file_is_the_best_that_fits(limit, pictures):
    image = levels_of(pictures(1, 128, 128)[0])
    data = encode_at_most(image, "JPEG", 95, at_most=limit)
    assert len(data) <= limit
    sizes = [len(encode_at_most(image, "JPEG", quality)) for quality in range(1, 96)]
    best = max(size for size in sizes if size <= limit)
    assert len(data) == best
    assert np.asarray(Image.open(io.BytesIO(data))).shape == image.shape


def test_a_file_that_never_fits_has_the_lowest_quality(pictures):
    image = levels_of(pictures(1, 64, 64)[0])
    assert encode_at_most(image, "JPEG", 80, at_most=1) == encode_at_most(image, "JPEG", 1)


def test_a_photograph_sent_by_whatsapp_has_the_size_that_users_see(pictures):
    """A packaged photograph, enlarged to 1600 pixels."""
    path = files("privgen") / "data" / "photos" / "heldout" / "lomiri-life.jpg"
    with Image.open(str(path)) as photograph:
        image = np.asarray(photograph.convert("RGB").resize((1600, 1065)))
    assert 155_000 < len(encode_at_most(image, "JPEG", 80, at_most=317_000)) <= 317_000


@pytest.mark.parametrize("place", ["bottom", "top"])
@pytest.mark.parametrize("strength", [0.1, 0.25, 1])
def test_a_caption_covers_what_it_says(strength, place, pictures):
    images = pictures(2, 80, 160) * 0.5 + 0.4
    made = Caption(strength, place=place, quality=95)(images)
    assert made.shape == images.shape
    rows = round(80 * strength)
    made, images = (made, images) if place == "bottom" else (made.flip(2), images.flip(2))
    bar, rest = made[:, :, 80 - rows :], made[:, :, : 80 - rows]
    assert bar[..., :4].max() < 0.1, "the bar is black beside the text"
    assert (bar[0] - bar[1]).abs().max() < 0.15, "the bar does not depend on the image, but for the codec"
    letters = (bar.mean(1) > 0.5).float().mean().item()
    assert 0.01 < letters < 0.5
    if rows < 80:
        # Blocks of 8 x 8 pixels, and chroma at half resolution, smear the edge of the bar.
        assert (rest - images[:, :, : 80 - rows])[:, :, :-16].abs().max() < 0.15


def test_long_captions_fit_between_the_edges(pictures):
    made = Caption(0.3, text="many words " * 9, quality=95)(pictures(1, 60, 200))
    bar = made[0, :, 42:].mean(0)
    assert (bar > 0.4).any()
    assert bar[:, :6].max() < 0.15
    assert bar[:, -6:].max() < 0.15


def test_a_caption_without_text_is_a_black_bar(pictures):
    assert Caption(0.5, text="", quality=100)(pictures(1, 32, 32))[..., 18:, :].max() < 0.02


def test_a_screenshot_is_a_smaller_brighter_part(pictures, seeded):
    images = pictures(2, 100, 200) * 0.5 + 0.2
    made = Screenshot()(images, generator=seeded(1, 2))
    assert made.shape[-2:] == (76, 152)  # 0.8 of 95 x 190, which are sqrt(0.9) of the sides
    torch.testing.assert_close(made.mean((2, 3)), 1.1 * images.mean((2, 3)), atol=0.03, rtol=0)
    assert Screenshot(2)(images).shape[-2:] == (53, 107)


def test_an_upload_chain_resizes_and_compresses_each_time(pictures):
    images = pictures(1, 100, 150)
    assert UploadChain(1)(images).shape[-2:] == (90, 135)
    assert UploadChain(3, scale=0.5)(images).shape[-2:] == (12, 19)
    twice = JPEG(30)(JPEG(30)(images))
    assert torch.equal(UploadChain(2, scale=1, quality=30)(images), twice)
    assert not torch.equal(UploadChain(1, scale=1, quality=30)(images), images)
