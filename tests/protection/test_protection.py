"""The front door: what comes in comes back, at the quality that was asked for."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from privgen import Protection
from privgen.errors import PrivgenError
from privgen.protection.method import Method
from privgen.protection.protection import Protected


GREY = torch.full((3, 32, 32), 0.5)


@pytest.fixture
def noise():
    return Protection.from_pretrained(method="noise")


@pytest.fixture(scope="module")
def photo(photo_files):
    with Image.open(photo_files[3]) as image:
        return image.convert("RGB").resize((61, 47))


def forms(photo):
    array = np.asarray(photo)
    return {
        "Pillow": photo,
        "grey": photo.convert("L"),
        "alpha": photo.convert("RGBA"),
        "uint8 array": array,
        "float array": array.astype(np.float32) / 255,
        "tensor": torch.from_numpy(array.copy()).permute(2, 0, 1) / 255,
        "uint8 tensor": torch.from_numpy(array.copy()).permute(2, 0, 1),
    }


@pytest.mark.parametrize("form", ["Pillow", "grey", "alpha", "uint8 array", "float array", "tensor", "uint8 tensor"])
def test_what_comes_in_comes_back(form, photo, noise):
    image = forms(photo)[form]
    safe = noise.protect(image, psnr=30)
    assert isinstance(safe, Protected)
    assert type(safe.image) is type(image)
    if isinstance(image, Image.Image):
        assert (safe.image.size, safe.image.mode) == (image.size, image.mode)
        if form == "alpha":
            assert safe.image.getchannel("A").tobytes() == image.getchannel("A").tobytes()
    else:
        assert (safe.image.shape, safe.image.dtype) == (image.shape, image.dtype)
    assert safe.psnr == pytest.approx(30, abs=0.05)
    assert 0.5 < safe.ssim < 0.99
    assert safe.visible_de_p99 > 1
    assert safe.seconds > 0


def test_the_figures_are_those_of_the_image(photo, noise):
    array = np.asarray(photo)
    safe = noise.protect(array, psnr=33)
    error = ((safe.image.astype(float) - array) / 255) ** 2
    assert safe.psnr == pytest.approx(-10 * np.log10(error.mean()), abs=1e-3)


def test_a_batch_is_its_images_one_by_one(noise):
    images = torch.rand(3, 3, 20, 24)
    batch = noise.protect(images, psnr=30, seed=7)
    one = noise.protect(images[0], psnr=30, seed=7)
    assert [tuple(safe.image.shape) for safe in batch] == [(3, 20, 24)] * 3
    torch.testing.assert_close(batch[0].image, one.image)
    differences = [safe.image - image for safe, image in zip(batch, images, strict=True)]
    assert not torch.allclose(differences[0], differences[1], atol=0.01)  # each image draws noise of its own


def test_a_seed_gives_the_same_image(photo, noise):
    first, again, other = (noise.protect(photo, seed=seed).image.tobytes() for seed in (0, 0, 1))
    assert first == again != other


def test_a_change_is_resized_and_then_scaled(photo):
    class Ramp(Method):
        name = "ramp"

        def change(self, pixels, surrogate, rms, generator):
            return torch.linspace(-1, 1, 8).expand(1, 3, 8, 8)

    grey = torch.full((3, 64, 96), 0.5)
    safe = Protection(Ramp()).protect(grey, psnr=30)
    difference = safe.image - grey
    assert difference.square().mean().sqrt() == pytest.approx(10**-1.5, rel=1e-3)
    assert bool((difference[..., 1:] >= difference[..., :-1] - 1e-4).all())  # still a ramp from left to right


def test_white_images_and_tiny_ones(noise):
    white = noise.protect(torch.ones(3, 32, 32), psnr=36)
    assert float(white.image.max()) <= 1
    assert noise.protect(torch.full((3, 5, 40), 0.5)).ssim is None


def test_it_can_be_pickled(photo, noise):
    again = pickle.loads(pickle.dumps(noise))
    assert again.protect(photo).image.tobytes() == noise.protect(photo).image.tobytes()


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda p: p.protect("no.png"), PrivgenError, "no.png"),
        (lambda p: p.protect(torch.rand(2, 5, 5)), ValueError, r"got shape \(2, 5, 5\)"),
        (lambda p: p.protect(torch.rand(3, 9, 9), psnr=0), ValueError, "above 0 dB"),
        (lambda p: Protection.from_pretrained("no-model", method="encoder").protect(GREY), PrivgenError, "no-model"),
        (lambda p: p.protect(3), TypeError, "Pillow image"),
        (lambda p: Protection.from_pretrained(method="noise", steps=3), TypeError, "steps"),
    ],
)
def test_bad_input(call, error, match, noise):
    with pytest.raises(error, match=match):
        call(noise)
