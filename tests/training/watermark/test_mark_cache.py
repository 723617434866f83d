"""Images and marks are made at the size of the autoencoder, and a mark's opposite is that of the opposite message."""

import numpy as np
import pytest
import torch

from privgen.data.photos import load_photos
from privgen.diffusion.latents import decode, encode
from privgen.models.initialise import seeded_weights
from privgen.models.mappers import LatentMapper
from privgen.training.mini.autoencoder import AutoencoderRecipe, build_autoencoder
from privgen.training.watermark.mark_cache import MarkBank, generated, photographs, scenes


SIZE, N_BITS = 48, 6


@pytest.fixture(scope="module")
def vae():
    with seeded_weights(0):
        return build_autoencoder(AutoencoderRecipe(size=SIZE, channels=(8, 8, 8), latent_channels=2)).eval()


@pytest.fixture(scope="module")
def mapper():
    with seeded_weights(1):
        return LatentMapper(N_BITS, channels=2, size=12, strength=0.3)


def test_every_source_makes_images_of_the_canvas(vae, mapper, root, generator):
    photos = load_photos(root / "privgen" / "data" / "photos" / "heldout")
    images = torch.rand(2, 3, SIZE, SIZE, generator=generator)
    sources = (scenes(vae, mapper, 0), photographs(vae, mapper, photos, 0), generated(vae, mapper, images, 0))
    for source in sources:
        pixels, changes, bits = source([4, 5, 6])
        assert pixels.shape == changes.shape == (3, 3, SIZE, SIZE)
        assert bits.shape == (3, N_BITS)
        with torch.no_grad():
            z = encode(vae, source([4])[0])
            if source is not sources[0]:  # scenes have gone through the autoencoder already
                expected = decode(vae, z + mapper(bits[:1])) - decode(vae, z)
                torch.testing.assert_close(changes[:1], expected, rtol=1e-3, atol=1e-4)


def test_a_bank_draws_marks_and_their_opposites(generator):
    bits = torch.tensor([[0, 1], [1, 1], [0, 0]], dtype=torch.uint8)
    changes = torch.randn(3, 3, 4, 4, generator=generator).half()
    bank = MarkBank(torch.zeros(3, 3, 4, 4, dtype=torch.uint8), changes, bits, torch.tensor([0, 1, 1]))
    drawn = set()
    for seed in range(30):
        _, change, message = bank.draw(1, np.random.default_rng(seed))
        number, sign = next((i, s) for i in (1, 2) for s in (1, -1) if torch.equal(change, s * changes[i].float()))
        assert message.tolist() == (bits[number] if sign == 1 else 1 - bits[number]).tolist()
        drawn.add((number, sign))
    assert drawn == {(1, 1), (1, -1), (2, 1), (2, -1)}
