import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from privgen.data.scenes import PREVIEW_SEED, draw_scene
from privgen.training.mini.autoencoder import AutoencoderRecipe, AutoencoderTask


@pytest.mark.parametrize("levels", [1, 3])
def test_any_number_of_levels(levels, tmp_path):
    recipe = AutoencoderRecipe(channels=(8,) * levels, latent_channels=2, crop=32, photo_fraction=0.0)
    task = AutoencoderTask(recipe, 0)
    scalars = task(task.batch([0, 1]))
    scalars["loss"].backward()
    assert all(value.isfinite() for value in scalars.values())
    assert task.preview().size == (6 * 128, 2 * 128)
    task.export(tmp_path)
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    x = torch.from_numpy(np.stack([draw_scene(PREVIEW_SEED + i).pixels for i in range(64)]))
    with torch.no_grad():
        z = vae.encode(2 * x - 1).latent_dist.mean * vae.config.scaling_factor
    side = 128 // 2 ** (levels - 1)
    assert z.shape == (64, 2, side, side)
    assert float(z.std()) == pytest.approx(1, rel=1e-3)
