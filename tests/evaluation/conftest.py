import shutil

import pytest
import torch
from diffusers import AutoencoderKL

from privgen.models.mappers import LatentMapper


@pytest.fixture(scope="package")
def model_folder(marked_model, tmp_path_factory):
    """The tiny model, changed so that its marks are found in its own images, which are no photographs."""
    folder = tmp_path_factory.mktemp("models") / "marked"
    shutil.copytree(marked_model, folder)
    vae = AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():
        for parameter in vae.decoder.conv_out.parameters():
            parameter.mul_(0.1)  # so that no pixel is clipped
    vae.save_pretrained(folder / "vae")
    mapper = LatentMapper.from_pretrained(folder / "privgen" / "latent_mapper")
    mapper.register_to_config(strength=16.0)
    mapper.save_pretrained(folder / "privgen" / "latent_mapper")
    return folder
