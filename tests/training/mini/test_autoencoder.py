import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from privgen.data.scenes import PREVIEW_SEED, draw_scene
from privgen.diffusion.latents import encode
from privgen.models.family import Canvas
from privgen.training.mini.autoencoder import AutoencoderRecipe, AutoencoderTask


@pytest.mark.parametrize(("levels", "size"), [(1, 64), (3, 96)])
def test_any_number_of_levels_and_any_size(levels, size, tmp_path):
    recipe = AutoencoderRecipe(size=size, channels=(8,) * levels, latent_channels=2, crop=32, photo_fraction=0.0)
    task = AutoencoderTask(recipe, 0)
    scalars = task(task.batch([0, 1]))
    scalars["loss"].backward()
    assert all(value.isfinite() for value in scalars.values())
    assert task.preview().size == (6 * size, 2 * size)
    task.export(tmp_path)
    vae = AutoencoderKL.from_pretrained(tmp_path / "vae")
    assert Canvas.of_vae(vae) == Canvas(size, 2 ** (levels - 1), 2)
    x = torch.from_numpy(np.stack([draw_scene(PREVIEW_SEED + i, size=size).pixels for i in range(64)]))
    with torch.no_grad():
        assert float(encode(vae, x).std()) == pytest.approx(1, rel=1e-3)


def test_a_decoder_alone():
    recipe = AutoencoderRecipe(channels=(8, 8), latent_channels=2, crop=16, photo_fraction=0.0, decoder_only=True)
    task = AutoencoderTask(recipe, 0)
    task(task.batch([0]))["loss"].backward()
    trained = {name.split(".")[1] for name, value in task.named_parameters() if value.grad is not None}
    assert trained == {"decoder", "post_quant_conv"}
