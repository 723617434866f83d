"""Shifts of latents, where they are known in closed form."""

import math

import pytest
import torch
from diffusers import AutoencoderTiny

from privgen.evaluation.protection.latents import latent_shifts
from privgen.models.initialise import seeded_weights


class Blocks:
    """A linear autoencoder's encoder: the mean of each block of 8 x 8 pixels, in [-1, 1]."""

    device, dtype, config = torch.device("cpu"), torch.float32, type("Config", (), {"scaling_factor": 1.0})

    def encode(self, x):
        return type("Encoded", (), {"latents": torch.nn.functional.avg_pool2d(x, 8)})


def images(count=3, side=64):
    generator = torch.Generator().manual_seed(0)
    coarse = 0.25 + 0.5 * torch.rand(count, 3, side // 8, side // 8, generator=generator)
    return list(torch.nn.functional.interpolate(coarse, scale_factor=8))


def test_a_linear_encoder_in_closed_form():
    originals = images()
    found = latent_shifts(originals, [image + 0.02 for image in originals], {"blocks": Blocks()})["blocks"]
    spread = float((2 * torch.stack(originals)).std())
    assert found.shift.value == pytest.approx(0.04 / spread, rel=1e-3)
    # The mean of 64 values of noise is an eighth as large, and rounding to 255 levels adds hardly anything.
    assert found.noise.value == pytest.approx(0.04 / 8 / spread, rel=0.2)
    assert found.over_noise.value == pytest.approx(8, rel=0.2)
    # A JPEG file keeps the mean of a block, but for rounding.
    assert found.kept.value == pytest.approx(1, abs=0.1)
    assert found.jpeg.value == pytest.approx(found.kept.value * found.shift.value, rel=0.05)
    assert found.shift.n == 3


def test_noise_moves_as_far_as_noise():
    with seeded_weights(0):
        vae = AutoencoderTiny(
            encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=4,
            num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
        ).eval()  # fmt: skip
    originals = images()
    generator = torch.Generator().manual_seed(9)
    noisy = [(image + 0.02 * torch.randn(image.shape, generator=generator)).clamp(0, 1) for image in originals]
    found = latent_shifts(originals, noisy, {"tiny": vae})["tiny"]
    assert found.over_noise.value == pytest.approx(1, abs=0.05)


def test_the_record_has_values_and_intervals():
    originals = images()
    record = latent_shifts(originals, [image + 0.02 for image in originals], {"blocks": Blocks()})["blocks"].record()
    assert set(record) == {"shift", "noise", "over_noise", "jpeg", "kept", "ci95"}
    assert record["ci95"]["shift"]["n"] == 3
    assert math.isfinite(record["ci95"]["over_noise"]["low"])


def test_images_that_do_not_pair():
    originals = images()
    with pytest.raises(ValueError, match="as many changed images"):
        latent_shifts(originals, originals[:1], {})
    with pytest.raises(ValueError, match="image 0"):
        latent_shifts(originals, originals, {})
    with pytest.raises(ValueError, match="image 1"):
        latent_shifts(originals, [originals[0] + 0.01, originals[1][:, 1:], originals[2]], {})
