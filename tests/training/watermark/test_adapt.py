"""Networks for the marks of any model: they write and read, and a folder of them stands for the model."""

import json
from dataclasses import replace

import pytest
import torch

from privgen import Key, Watermark, load_pipeline
from privgen.errors import PrivgenError, UsageError
from privgen.hub import CONFIG, load_extra, pipeline_of, resolve_model
from privgen.io.images import load_image
from privgen.io.pixels import resize
from privgen.io.residual import to_canvas
from privgen.models.answer_reader import AnswerReader
from privgen.models.autoencoder import load_autoencoder
from privgen.models.family import Canvas
from privgen.models.latent_reader import LatentReader
from privgen.training.watermark.adapt import CodeSize, adapt, noise_patterns
from privgen.training.watermark.adapt_model import adapt_model
from privgen.watermark.write.residual import latent_residuals


CODE = CodeSize(n_bits=16, examples=1, psnr=36)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapted") / "model"
    return folder, adapt_model("mini", folder, code=CODE)


@pytest.fixture(scope="module")
def flux_marks(real_autoencoder):
    vae = load_autoencoder(real_autoencoder("taef1"))
    return vae, adapt(vae, 256, code=replace(CODE, examples=2))


@pytest.fixture
def tiny_folder(tiny, tmp_path):
    tiny.tiny_pipeline().save_pretrained(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_marks_are_read_and_their_absence_is_too(adapted):
    _, result = adapted
    assert result.bit_accuracy > 0.9
    assert result.bit_accuracy_jpeg_50 > 0.8
    assert 0.3 < result.bit_accuracy_unmarked < 0.7


def test_the_folder_stands_for_the_model(adapted):
    folder, _ = adapted
    assert pipeline_of(resolve_model(folder)) == (resolve_model("mini"), None)
    assert not (folder / "unet").exists()
    assert load_pipeline(folder).unet.config == load_pipeline("mini").unet.config


def test_photographs_and_generated_images_are_marked(adapted, photo_files):
    folder, _ = adapted
    key, mark = Key.new("alice"), Watermark.from_pretrained(folder)
    photo = load_image(photo_files[70]).pixels
    found = mark.detect([mark.embed(photo, key, psnr=34), photo], key, fpr=0.01)
    assert [one.detected for one in found] == [True, False]
    pipe = load_pipeline(folder)
    settings = {"num_inference_steps": 8, "guidance_scale": 3.0, "output_type": "pt"}
    with mark.on(pipe, key):
        marked = pipe("a cat", generator=torch.Generator().manual_seed(0), **settings).images
    plain = pipe("a cat", generator=torch.Generator().manual_seed(0), **settings).images
    psnr = -10 * (marked - plain).square().mean().log10()
    assert abs(float(psnr) - CODE.psnr) < 3
    found = mark.detect([marked[0], plain[0]], key, fpr=0.01, carrier="latent")
    assert found[0].best.matches > found[1].best.matches


def test_an_autoencoder_of_your_own_is_remembered(adapted, tmp_path):
    vae = adapted[0] / "vae"
    load_pipeline("mini").vae.save_pretrained(vae)
    adapt_model("mini", tmp_path / "out", vae=vae, code=CODE)
    assert json.loads((tmp_path / "out" / CONFIG).read_text())["base_vae"] == str(vae.resolve())
    assert pipeline_of(resolve_model(tmp_path / "out"))[1] == str(vae.resolve())


def test_the_models_own_folder_will_do(tiny_folder):
    adapt_model(tiny_folder, tiny_folder, code=CODE)
    assert "base_model" not in json.loads((tiny_folder / CONFIG).read_text())
    with pytest.raises(PrivgenError, match="exists"):
        adapt_model(tiny_folder, tiny_folder, code=CODE)
    adapt_model(tiny_folder, tiny_folder, code=CODE, overwrite=True)
    assert not list(tiny_folder.glob(".adapt-*"))


def test_patterns_are_orthogonal_noise_without_slow_waves():
    canvas = Canvas(size=256, patch=8, channels=4)
    patterns = noise_patterns(24, canvas)
    gram = patterns.flatten(1) @ patterns.flatten(1).T / canvas.values
    torch.testing.assert_close(gram, torch.eye(24), rtol=0, atol=1e-4)
    assert float(patterns.mean(dim=(-2, -1)).abs().max()) < 0.05
    kurtosis = float(patterns.pow(4).mean() / patterns.square().mean() ** 2)
    assert kurtosis == pytest.approx(3, abs=0.1), "normal"


def test_logits_of_unmarked_images_are_standard_normal(photo_files):
    """For a fixed image, over random patterns."""
    vae = load_pipeline("mini").vae
    canvases = to_canvas([load_image(path).pixels for path in photo_files[:6]], 128)
    canvas = Canvas.of_vae(vae, 128)
    patterns = torch.randn(
        200, canvas.channels, canvas.latents, canvas.latents, generator=torch.Generator().manual_seed(5)
    )
    with torch.no_grad():
        logits = LatentReader.from_vae(vae, patterns, size=128).eval()(canvases)
    assert logits.mean(1).abs().max() < 4 / 200**0.5
    torch.testing.assert_close(logits.std(1), torch.ones(6), rtol=0, atol=0.2)


def test_logits_of_decoder_answers_are_standard_normal(flux_marks, photo_files):
    """For a fixed image without a mark, over random patterns, at any size."""
    _, made = flux_marks
    config = made.extractor.config
    reader = AnswerReader(200, 256, config.patch, config.latent_channels)
    for name in ("answers", "noise", "weights"):
        getattr(reader, name).copy_(getattr(made.extractor, name))
    reader.patterns.copy_(torch.randn(reader.patterns.shape, generator=torch.Generator().manual_seed(5)))
    for size in (256, (192, 320)):
        with torch.no_grad():
            logits = reader.read_drawn(to_canvas([load_image(path).pixels for path in photo_files[:6]], size))
        assert logits.mean(1).abs().max() < 4 / 200**0.5
        torch.testing.assert_close(logits.std(1), torch.ones(6), rtol=0, atol=0.2)


@pytest.mark.parametrize("size", [(256, 256), (192, 320), (256, 384), (192, 256), (208, 168)])
def test_sizes_other_than_the_square(size, flux_marks, photo_files):
    """What was drawn at a size is read; the models' usual sizes also after it was resized."""
    vae, made = flux_marks
    [canvas] = to_canvas([load_image(photo_files[3]).pixels], size)
    bits = torch.randint(0, 2, (1, CODE.n_bits), generator=torch.Generator().manual_seed(1)).float()
    with torch.no_grad():
        drawn = canvas + 2 * latent_residuals(canvas[None], bits, vae=vae, latent_mapper=made.latent_mapper)
        for scale in (1.0, 0.7) if size != (208, 168) else (1.0,):
            seen = resize(drawn, [round(scale * side) for side in size]).clamp(0, 1)
            assert float(((made.extractor(seen) > 0) == bits.bool()).float().mean()) > 0.8


@pytest.mark.parametrize("name", ["taesd", "taesd3"])
def test_real_latent_spaces(name, real_autoencoder, photo_files):
    vae, generator = load_autoencoder(real_autoencoder(name)), torch.Generator().manual_seed(0)
    made = adapt(vae, 256, code=replace(CODE, examples=8))
    canvases = to_canvas([load_image(path).pixels for path in photo_files[:4]], 256)
    bits = torch.randint(0, 2, (4, CODE.n_bits), generator=generator)
    with torch.no_grad():
        change = latent_residuals(canvases, bits.float(), vae=vae, latent_mapper=made.latent_mapper)
        psnr = -10 * change.square().mean(dim=(1, 2, 3)).log10()
        assert float(psnr.mean()) == pytest.approx(CODE.psnr, abs=3)
        right = (made.extractor((canvases + 2 * change).clamp(0, 1)) > 0) == bits.bool()
    assert float(right.float().mean()) > 0.8


@pytest.mark.parametrize("options", [{"n_bits": 4}, {"psnr": 0}, {"examples": 0}, {"size": 32}])
def test_sizes_that_cannot_be(options):
    with pytest.raises(UsageError):
        CodeSize(**options)


def test_a_size_of_your_own(tmp_path):
    adapt_model("mini", tmp_path / "out", code=replace(CODE, size=96))
    assert load_extra("extractor", tmp_path / "out", device="cpu").config.size == 96


def test_too_many_bits_for_small_images(tiny_folder, tmp_path):
    with pytest.raises(UsageError, match="too small for 48 bits"):
        adapt_model(tiny_folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_without_photographs(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no photographs"):
        adapt_model("mini", tmp_path / "out", photos=tmp_path / "empty", code=CODE)
    assert not (tmp_path / "out").exists()


def test_settings_that_cannot_be_read(tmp_path):
    (tmp_path / "privgen").mkdir()
    (tmp_path / CONFIG).write_text("{")
    with pytest.raises(PrivgenError, match="cannot be read"):
        resolve_model(tmp_path)
