"""IMPRESS: what it minimises, where it starts and how far it goes."""

import pytest
import torch

from privgen.attacks import Impress
from privgen.diffusion.latents import decode, encode
from privgen.errors import PrivgenError
from privgen.metrics.quality import psnr


@pytest.fixture(scope="module")
def pipeline(tiny):
    return tiny.tiny_pipeline()


def inconsistency(pipeline, images):
    with torch.no_grad():
        return float((decode(pipeline.vae, encode(pipeline.vae, images)) - images).square().mean())


def test_the_autoencoder_keeps_the_result_better(pipeline, pictures, seeded):
    images = pictures(1, 32, 32)
    found = Impress(20, model=pipeline, noise=0.0)(images, generator=seeded(0))
    assert inconsistency(pipeline, found) < 0.95 * inconsistency(pipeline, images)


def test_the_penalty_keeps_the_result_close(pipeline, pictures, seeded):
    images = pictures(1, 32, 32)
    free = Impress(20, model=pipeline, weight=0.0)(images, generator=seeded(0))
    held = Impress(20, model=pipeline, weight=10.0, tolerance=0.0)(images, generator=seeded(0))
    assert psnr(held, images) > psnr(free, images) + 1


def test_one_step_moves_each_pixel_by_half_of_lr_at_most(pipeline, pictures, seeded):
    """Pixels count from -1 to 1 in the paper, so a step of lr there is half of it here."""
    images = pictures(1, 32, 32).clamp(0.2, 0.8)
    moved = (Impress(1, model=pipeline, noise=0.0, lr=0.01)(images, generator=seeded(0)) - images).abs()
    assert 0.0045 < float(moved.max()) <= 0.00501


def test_a_batch_is_its_images_and_zero_steps_are_none(pipeline, pictures, seeded):
    images = pictures(2, 32, 24)
    attack = Impress(2, model=pipeline)
    both = attack(images, generator=seeded(1, 2))
    torch.testing.assert_close(both[1:], attack(images[1:], generator=seeded(2)), atol=1e-4, rtol=0)
    assert torch.equal(Impress(0, model=pipeline)(images), images)


def test_sides_that_the_autoencoder_does_not_take(pipeline, pictures, seeded):
    assert Impress(1, model=pipeline)(pictures(1, 33, 21), generator=seeded(0)).shape == (1, 3, 33, 21)


def test_small_images(pipeline):
    with pytest.raises(PrivgenError, match="impress: an image has a side below 11 pixels"):
        Impress(1, model=pipeline)(torch.rand(1, 3, 10, 20))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [({"lr": 0}, "expected lr above 0"), ({"noise": -1}, "expected lr above 0"), ({"distance": "mse"}, "got 'mse'")],
)
def test_bad_parameters(parameters, message):
    with pytest.raises(ValueError, match=message):
        Impress(**parameters)
