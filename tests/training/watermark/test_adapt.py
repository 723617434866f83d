"""Networks for the marks of any model: they write and read, and a folder of them stands for the model."""

import json

import pytest
import torch

from privgen import Key, Watermark, load_pipeline
from privgen.errors import PrivgenError, UsageError
from privgen.hub import CONFIG, pipeline_of, resolve_model
from privgen.io.images import load_image
from privgen.training.watermark.adapt import CodeSize
from privgen.training.watermark.adapt_model import adapt_model


CODE = CodeSize(n_bits=16, pilots=8, images=64, examples=1, psnr=34)


@pytest.fixture(scope="module")
def base(tiny, tmp_path_factory, real_autoencoder):
    """A tiny pipeline that draws 128 x 128 pixels with the autoencoder of Stable Diffusion."""
    from privgen.models.autoencoder import load_autoencoder

    pipe = tiny.tiny_pipeline()
    pipe.unet = tiny.tiny_unet("sd15", channels=4, sample=16)
    pipe.vae, pipe.vae_scale_factor = load_autoencoder(real_autoencoder("taesd")), 8
    folder = tmp_path_factory.mktemp("base")
    pipe.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapted(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted") / "model"
    return folder, adapt_model(base, folder, code=CODE)


def test_marks_are_read_and_their_absence_is_too(adapted):
    _, result = adapted
    assert result.bit_accuracy > 0.8
    assert result.bit_accuracy >= result.bit_accuracy_jpeg_50 > 0.65
    assert 0.3 < result.bit_accuracy_unmarked < 0.7


def test_the_folder_stands_for_the_model(adapted, base):
    folder, _ = adapted
    assert pipeline_of(resolve_model(folder)) == (str(base), None)
    assert not (folder / "unet").exists()
    pipe = load_pipeline(folder)
    assert torch.equal(pipe.vae.state_dict()["decoder.layers.0.weight"].cpu(), load_pipeline(base).vae.state_dict()["decoder.layers.0.weight"])


def test_photographs_and_generated_images_are_marked(adapted, photo_files):
    folder, _ = adapted
    key, mark = Key.new("alice"), Watermark.from_pretrained(folder)
    photo = load_image(photo_files[70]).pixels
    found = mark.detect(mark.embed(photo, key, psnr=34), key, fpr=0.01)
    assert found.best.matches >= 12
    pipe = load_pipeline(folder)
    with mark.on(pipe, key):
        marked = pipe("a", num_inference_steps=1, output_type="pt", generator=torch.Generator().manual_seed(0)).images
    plain = pipe("a", num_inference_steps=1, output_type="pt", generator=torch.Generator().manual_seed(0)).images
    assert 0 < float((marked - plain).abs().mean()) < 0.1


def test_an_autoencoder_of_your_own_is_remembered(base, tmp_path, real_autoencoder):
    vae = real_autoencoder("taesdxl")
    adapt_model(base, tmp_path / "out", vae=vae, code=CODE)
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["base_vae"] == str(vae.resolve())


def test_the_models_own_folder_will_do(tiny, tmp_path, base):
    import shutil

    folder = tmp_path / "copy"
    shutil.copytree(base, folder)
    adapt_model(folder, folder, code=CODE)
    assert "base_model" not in json.loads((folder / CONFIG).read_text())
    with pytest.raises(PrivgenError, match="exists"):
        adapt_model(folder, folder, code=CODE)


@pytest.mark.parametrize("options", [{"n_bits": 4}, {"images": 40}, {"pilots": 0}])
def test_sizes_that_cannot_be(options):
    with pytest.raises(UsageError):
        CodeSize(**options)


def test_a_folder_without_photographs(base, tmp_path):
    with pytest.raises(UsageError, match="no photographs"):
        adapt_model(base, tmp_path / "out", photos=tmp_path, code=CODE)
    assert not (tmp_path / "out").exists()


def test_settings_that_cannot_be_read(tmp_path):
    (tmp_path / "privgen").mkdir()
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(PrivgenError, match="cannot be read"):
        resolve_model(tmp_path)
