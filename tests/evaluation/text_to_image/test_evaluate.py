import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from privgen.data.patterns import TEXTURES, texture
from privgen.data.scenes import TEXTURE_RMS
from privgen.diffusion.sampling import Sampling
from privgen.errors import PrivgenError
from privgen.evaluation.record import check_output
from privgen.evaluation.text_to_image import autoencoder
from privgen.evaluation.text_to_image.evaluate import evaluate_model
from privgen.evaluation.text_to_image.textures import texture_response
from privgen.models.classifier import SceneClassifier


NAMES = {
    "model",
    "n",
    "seed",
    "steps",
    "guidance_scale",
    "seconds_per_image",
    "vae_psnr_scenes_db",
    "vae_psnr_photos_db",
    "vae_psnr_whole_photos_db",
    "texture_gain",
    "classifier_accuracy",
    "one_object_accuracy",
    "two_object_accuracy",
    "exact_objects_accuracy",
    "background_accuracy",
    "pattern_accuracy",
    "texture_response",
    "texture_energy_fraction",
    "texture_first_accuracy",
    "ci95",
    "environment",
}


@pytest.fixture(scope="module")
def pipeline(tiny):
    return tiny.tiny_pipeline("sd21")


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for i in range(2):
        pixels = rng.integers(0, 255, (50 + i, 70, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path / "photos"


class Fading:
    """An autoencoder whose latents are pixels, and which loses `loss` of their contrast around grey."""

    device, dtype, config = torch.device("cpu"), torch.float32, SimpleNamespace()

    def __init__(self, loss=0.0):
        self.loss = loss

    def encode(self, x):
        return SimpleNamespace(latent_dist=SimpleNamespace(mean=x))

    def decode(self, z, return_dict=True):
        assert not return_dict
        return ((1 - self.loss) * z,)


# Measures


def test_a_perfect_autoencoder_keeps_everything(photos):
    assert autoencoder.texture_gain(Fading(), 3, 0, 64).value == pytest.approx(1, abs=1e-4)
    assert autoencoder.texture_gain(Fading(0.25), 3, 0, 64).value == pytest.approx(0.75, abs=1e-4)
    assert autoencoder.psnr_of_scenes(Fading(), 3, 0, 32).value > 100
    crops, whole = (
        autoencoder.psnr_of_crops(Fading(0.1), 0, 32, photos),
        autoencoder.psnr_of_whole_photos(Fading(0.1), 32, photos),
    )
    assert (crops.n, whole.n) == (2, 2)
    assert 20 < whole.value < 50
    assert crops == autoencoder.psnr_of_crops(Fading(0.1), 0, 32, photos)
    assert crops != autoencoder.psnr_of_crops(Fading(0.1), 1, 32, photos)


def test_packaged_photographs():
    assert sum(1 for _ in autoencoder.heldout_photos().glob("*.jpg")) >= 100


def test_texture_response(generator):
    words = ["linen", "wicker", "silk"]
    plain = 0.3 + 0.4 * torch.rand(3, 3, 64, 64, generator=generator)
    fields = torch.from_numpy(np.stack([texture(word, 64) for word in words]))[:, None]
    amounts = torch.tensor([1.0, 0.5, 0.0])[:, None, None, None]
    other = 0.01 * torch.from_numpy(texture("cork", 64))
    response = texture_response(plain + amounts * TEXTURE_RMS * fields + other, plain, words)
    assert response.contrast.tolist() == pytest.approx([1, 0.5, 0], abs=1e-3)
    fraction = TEXTURE_RMS**2 / (TEXTURE_RMS**2 + 0.01**2)
    assert response.energy[0].item() == pytest.approx(fraction, rel=0.01)
    assert response.first.tolist() == [True, False, False]
    assert texture_response(plain, plain, words).contrast.tolist() == pytest.approx([0, 0, 0])


@pytest.mark.parametrize("shapes", [((2, 3, 8, 8), (1, 3, 8, 8)), ((2, 3, 8, 8), (2, 3, 8, 8)), ((1, 3, 8, 9),) * 2])
def test_texture_response_needs_pairs(shapes):
    with pytest.raises(ValueError, match="expected two equal batches of square images"):
        texture_response(torch.zeros(shapes[0]), torch.zeros(shapes[1]), [TEXTURES[0]])


# All together


@pytest.fixture(scope="module")
def classifier():
    return SceneClassifier((8,), 128).eval()


@pytest.fixture(scope="module")
def evaluate(pipeline, classifier):
    def run(photos, **options):
        sampling = Sampling(2, batch_size=4)
        return evaluate_model(pipeline, classifier, name="tiny", n=6, sampling=sampling, photos=photos, **options)

    return run


def test_an_evaluation(evaluate, photos, tmp_path):
    result = evaluate(photos, seed=1)
    record = result.record()
    assert record.keys() - {"named_pattern_accuracy"} == NAMES
    for name, interval in record["ci95"].items():
        assert interval["low"] <= record[name] <= interval["high"]
    assert record["ci95"]["one_object_accuracy"]["n"] == 3
    assert record["ci95"]["classifier_accuracy"]["n"] == 30
    assert (record["steps"], record["guidance_scale"]) == (2, 3)
    assert record["environment"]["packages"]["torch"]
    assert record["seconds_per_image"] > 0

    result.save(tmp_path / "results")
    assert {path.name for path in (tmp_path / "results").iterdir()} == {"results.json", "prompts.png", "wrong.png"}
    assert json.loads((tmp_path / "results" / "results.json").read_text())["seed"] == 1
    with pytest.raises(PrivgenError, match=r"results.json exists"):
        check_output(tmp_path / "results")
    check_output(tmp_path / "results", overwrite=True)
    result.save(tmp_path / "results", overwrite=True)


def test_the_same_seed_measures_the_same(evaluate, photos):
    first, again, other = (evaluate(photos, seed=seed).measures for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_too_few_pictures(pipeline, classifier):
    with pytest.raises(ValueError, match="expected n of at least 2, got 1"):
        evaluate_model(pipeline, classifier, n=1)
