"""The extractor is trained further: from mini's own, on marks of both carriers."""

from dataclasses import replace

import pytest
import torch

from privgen.diffusion.latents import decode, encode
from privgen.errors import UsageError
from privgen.hub import load_extra
from privgen.metrics.quality import psnr
from privgen.models.extractor import Extractor
from privgen.models.mappers import LatentMapper
from privgen.training.watermark.extractor import ExtractorRecipe, ExtractorTask


@pytest.fixture(scope="module")
def recipe(root):
    mini = root / "privgen" / "models" / "mini"
    photos = root / "privgen" / "data" / "photos" / "train"
    return ExtractorRecipe(
        vae=mini / "vae", photos=photos, start=mini / "privgen", model=mini, psnr_from=38.0, psnr_to=38.0
    )


@pytest.fixture(scope="module")
def task(recipe):
    return ExtractorTask(recipe, 0)


def test_it_goes_on_from_what_was_trained(task):
    extractor = load_extra("extractor", "mini")
    pixels = task.batch(list(range(4)))["pixels"]
    with torch.no_grad():
        before = extractor.filter_logits(extractor.encode(pixels))
        torch.testing.assert_close(
            task.extractor.filter_logits(task.extractor.encode(pixels)), before, rtol=1e-3, atol=1e-3
        )
        extractor.reset_whitening()
        torch.testing.assert_close(task.extractor(pixels), extractor(pixels), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("token_fraction", [0.0, 1.0])
def test_both_carriers_marks_are_read_at_the_quality_asked_for(task, recipe, token_fraction):
    task.recipe = replace(recipe, token_fraction=token_fraction)
    batch = task.batch(list(range(8)))
    assert bool((batch["by_token"] == bool(token_fraction)).all())
    with torch.no_grad():
        marked, figures = task.mark(batch), task(batch)
        round_trip = decode(task.vae, encode(task.vae, batch["pixels"]))
    base = torch.where(batch["as_decoded"][:, None, None, None], round_trip.clamp(0, 1), batch["pixels"])
    torch.testing.assert_close(psnr(marked, base), torch.full((8,), 38.0), rtol=0, atol=0.3)
    assert float(figures["bit_accuracy"]) > 0.9


def test_an_image_does_not_depend_on_its_batch(task, recipe):
    task.recipe = replace(recipe, token_fraction=0.5)
    whole, last = task.batch([5, 6, 7]), task.batch([7])
    for name, value in whole.items():
        torch.testing.assert_close(value[2:], last[name], rtol=0, atol=1e-6)


def test_whitening_and_strength_go_by_generated_images(task, recipe, tmp_path):
    """Logits of all images that they were whitened on, the generated ones among them, have the covariance I."""
    task.recipe = replace(recipe, clean_images=64, generated_images=2, psnr_to=34.0)
    generated = task.writer.unmarked(2, task.seed)
    drawn = task.batch(list(range(recipe.samples, recipe.samples + 64)))["pixels"]
    with torch.no_grad():
        task.export(tmp_path)
        logits = Extractor.from_pretrained(tmp_path / "extractor")(torch.cat([drawn, generated]))
        z = encode(task.vae, generated).repeat(4, 1, 1, 1)
        mapper = LatentMapper.from_pretrained(tmp_path / "latent_mapper")
        bits = torch.randint(2, (8, 48), generator=torch.Generator().manual_seed(1))
        change = decode(task.vae, z + mapper(bits)) - decode(task.vae, z)
    torch.testing.assert_close(logits.mean(0), torch.zeros(48), rtol=0, atol=5e-3)
    torch.testing.assert_close(torch.cov(logits.T), torch.eye(48), rtol=0, atol=2e-2)
    assert float((-10 * torch.log10(change.square().mean(dim=(1, 2, 3)))).mean()) == pytest.approx(34, abs=0.6)


def test_a_unet_is_trained_alone(recipe):
    task = ExtractorTask(replace(recipe, unet=True), 0)
    trained = {name: value for name, value in task.named_parameters() if value.requires_grad}
    assert {".".join(name.split(".")[:2]) for name in trained} == {
        "log_temperature",
        "extractor.unet",
        "extractor.trust",
        "extractor.readout",
    }
    task(task.batch(list(range(4))))["loss"].backward()
    assert float(trained["extractor.unet.conv_out.weight"].grad.abs().sum()) > 0


def test_a_unet_needs_a_denoiser(recipe):
    with pytest.raises(UsageError, match=r"set extractor.model to a folder with one"):
        ExtractorTask(replace(recipe, unet=True, model=None), 0)
