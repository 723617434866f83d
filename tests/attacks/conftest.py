from importlib.resources import files

import pytest
import torch

from privgen.models.initialise import seeded_weights


def make_pictures(batch, height, width, seed=0):
    """Pictures with the spectrum of photographs (1/f), correlated colours and a few hard edges, in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(batch, 3, height, width, generator=generator)
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    texture = torch.fft.irfft2(torch.fft.rfft2(noise) / (frequency + 1 / 64), s=(height, width))
    texture = texture.mean(1, keepdim=True) + 0.3 * texture
    texture = (texture - texture.mean((2, 3), keepdim=True)) / texture.std((1, 2, 3), keepdim=True)
    pictures = 0.45 + 0.18 * texture
    pictures[:, 0, height // 4 : height // 2, width // 5 : width // 2] += 0.3
    pictures[:, 2, height // 2 :, width // 3 :] -= 0.2
    return pictures.clamp(0, 1)


def load_photographs():
    from privgen.data.photos import load_photos

    photos = load_photos(files("privgen") / "data" / "photos")[:4]
    return torch.stack([torch.tensor(photo[:128, :128]).permute(2, 0, 1) / 255 for photo in photos])


SOURCES = {"synthetic": lambda: make_pictures(4, 128, 128)}
if (files("privgen") / "data" / "photos").is_dir():
    SOURCES["photographs"] = load_photographs


@pytest.fixture(scope="session", params=SOURCES)
def realistic(request):
    """(4, 3, 128, 128) pictures that look real, or are."""
    return SOURCES[request.param]()


@pytest.fixture(scope="session")
def pictures():
    """Makes pictures: ``pictures(batch, height, width, seed)``."""
    return make_pictures


@pytest.fixture(scope="session")
def seeded():
    """Makes generators: ``seeded(3)`` one, ``seeded(3, 4)`` a list."""

    def make(*seeds):
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return generators[0] if len(seeds) == 1 else generators

    return make


@pytest.fixture(scope="session")
def psnr():
    """Peak signal-to-noise ratio in dB of two batches in [0, 1]."""
    return lambda images, reference: -10 * float((images.double() - reference.double()).square().mean().log10())


@pytest.fixture(scope="session")
def tiny_ddpm():
    """A random pixel pipeline: 16 x 16, of a few thousand weights; ``tiny_ddpm(seed=1, out_channels=6)``."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    def make(seed=0, scheduler=None, **options):
        with seeded_weights(seed):
            unet = UNet2DModel(
                sample_size=16,
                block_out_channels=(8, 16),
                down_block_types=("DownBlock2D", "DownBlock2D"),
                up_block_types=("UpBlock2D", "UpBlock2D"),
                layers_per_block=1,
                norm_num_groups=4,
                add_attention=False,
                **options,
            )
        return DDPMPipeline(unet=unet.eval(), scheduler=scheduler or DDPMScheduler())

    return make


@pytest.fixture(scope="session")
def keeps_contract(seeded):
    """Checks of two pictures what every attack with a model promises, and gives what it made of them."""

    def check(attack, images):
        before, state = images.clone(), torch.random.get_rng_state()
        batch = attack(images, generator=seeded(5, 6))
        assert torch.equal(images, before), "the input was changed in place"
        assert torch.equal(state, torch.random.get_rng_state()), "the global generator was used"
        assert batch.shape == images.shape
        assert batch.dtype == images.dtype
        assert 0 <= batch.min() <= batch.max() <= 1
        assert not torch.allclose(batch, images, atol=0.01)
        assert torch.equal(batch, attack(images, generator=seeded(5, 6)))
        single = [attack(image[None], generator=seeded(seed)) for image, seed in zip(images, (5, 6), strict=True)]
        torch.testing.assert_close(batch, torch.cat(single), atol=1e-4, rtol=0)
        return batch

    return check
