import json

import numpy as np
import pytest
import torch

from privgen.attacks import get_attack
from privgen.errors import UsageError
from privgen.evaluation.adaptive.evaluate import NONE, attack_each, evaluate_adaptive, measure
from privgen.evaluation.adaptive.images import generated_material, photograph_material
from privgen.evaluation.adaptive.plan import AdaptivePlan
from privgen.evaluation.watermark.generation import draw_keys
from privgen.evaluation.watermark.model import load_watermark_model
from privgen.hub import Placement
from privgen.metrics.quality import psnr
from privgen.watermark.protocols import key_bits
from privgen.watermark.read.detection import Detector, DetectSpec
from privgen.watermark.read.logits import read_logits


@pytest.fixture(scope="module")
def model(marked_model):
    return load_watermark_model(marked_model, Placement("cpu"), carriers=("latent",))


@pytest.fixture(scope="module")
def folders(photo_files, tmp_path_factory):
    root = tmp_path_factory.mktemp("photos")
    for name, files in (("heldout", photo_files[:3]), ("training", photo_files[3:9])):
        (root / name).mkdir()
        for file in files:
            (root / name / file.name).write_bytes(file.read_bytes())
    return {"heldout": root / "heldout", "training": root / "training"}


@pytest.fixture(scope="module")
def key():
    return draw_keys(1, torch.Generator().manual_seed(0), "attacked")[0]


def test_photographs(model, folders, key):
    material = photograph_material(model, "latent", key, AdaptivePlan(n=2, collected=5, **folders))
    assert material.plain.shape == material.marked.shape == (2, 3, 32, 32)
    assert material.collected_marked.shape == material.collected_unmarked.shape == (5, 3, 32, 32)
    for images in vars(material).values():
        torch.testing.assert_close(images * 255, (images * 255).round(), atol=1e-4, rtol=0)
    assert psnr(material.marked, material.plain).min() == pytest.approx(38.1, abs=0.1)
    again = photograph_material(model, "latent", key, AdaptivePlan(n=2, collected=5, **folders))
    # The same work, in the same batches.
    assert all(torch.equal(a, b) for a, b in zip(vars(material).values(), vars(again).values(), strict=True))
    more = photograph_material(model, "latent", key, AdaptivePlan(n=9, collected=5, seed=1, **folders))
    assert len(more.plain) == 3, "there are no more photographs"
    assert not torch.equal(more.collected_unmarked, material.collected_unmarked)


def test_generated_images(model, key):
    material = generated_material(model, "latent", key, AdaptivePlan(n=2, collected=2))
    assert [len(images) for images in vars(material).values()] == [2, 2, 2, 2]
    assert 15 < psnr(material.marked, material.plain).min() < 80
    assert not torch.equal(material.collected_marked, material.marked)


def test_measures(model, key):
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    message = key_bits([key], model.extractor).numpy().astype(np.uint8)
    matches = ((read_logits(images, model.extractor) > 0).numpy() == message).sum(1)
    detector = Detector(model.networks, [key], DetectSpec(carrier="latent"))
    found = measure(detector, images, images)
    assert "psnr_db" not in found
    assert found["bit_accuracy"].value == pytest.approx(matches.mean() / 48)
    assert found["detected_1e-3"].value == (matches >= 36).mean()
    assert found["detected_1e-6"].n == 3
    changed = torch.cat([images[:1], (images[1:] + 0.1).clamp(0, 1)])
    quality = measure(detector, changed, images)["psnr_db"]
    assert quality.n == 2
    assert quality.value == pytest.approx(float(psnr(changed[1:], images[1:]).mean()))


def test_images_are_attacked_each_by_itself():
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    both = attack_each(get_attack("noise"), images, seed=3)
    single = get_attack("noise")(images[1:], generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(both[1:], (single * 255).round() / 255, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def result(model, folders):
    plan = AdaptivePlan(n=3, collected=6, epsilons=(8.0,), steps=10, fit_steps=5, seed=1, **folders)
    return evaluate_adaptive(model, plan)


def test_an_attacker_with_the_extractor_wins(result):
    """With a tiny model whose marks are found: what the extractor tells is taken away, and written elsewhere."""
    assert result.removal[NONE]["bit_accuracy"].value > 0.6 > result.forgery[NONE]["bit_accuracy"].value
    assert result.removal["extractor_8"]["bit_accuracy"].value < result.removal[NONE]["bit_accuracy"].value - 0.2
    assert result.forgery["extractor_8"]["bit_accuracy"].value > result.forgery[NONE]["bit_accuracy"].value + 0.2
    assert 25 < result.forgery["extractor_8"]["psnr_db"].value < 40


def test_everything_is_there(result, tmp_path):
    gradient, averages = {"extractor_8", "surrogate_8"}, {"averaging_1", "averaging_6"}
    assert set(result.forgery) == {NONE, *gradient, *averages}
    again = {"remarking_1", "remarking_3", "remarking_3_loud"}
    assert set(result.removal) == {*result.forgery, "embedding_8", *again}
    record = result.record()
    assert (record["n"], record["collected"], record["carrier"], record["source"]) == (3, 6, "latent", "photographs")
    ci95 = record["removal"]["extractor_8"]["ci95"]["detected_1e-3"]
    assert ci95["n"] == 3
    assert 0 <= ci95["low"] <= record["removal"]["extractor_8"]["detected_1e-3"] <= ci95["high"] <= 1
    result.save(tmp_path)
    assert json.loads((tmp_path / "results.json").read_text()) == record
    assert len(result.table()) == len(result.removal) + len(result.forgery)


def test_tiles(model, folders):
    """No extractor reads a tile, and marks of other keys leave it readable."""
    plan = AdaptivePlan(n=2, carrier="tile", collected=2, epsilons=(8.0,), steps=2, fit_steps=2, **folders)
    result = evaluate_adaptive(model, plan)
    assert not any("extractor" in name for name in (*result.removal, *result.forgery))
    for name in (NONE, "remarking_1", "remarking_3"):
        assert result.removal[name]["detected_1e-6"].value == 1, name
    assert result.forgery[NONE]["detected_1e-3"].value == 0
    assert result.removal["remarking_3_loud"]["psnr_db"].value < result.removal["remarking_1"]["psnr_db"].value


def test_errors(model):
    with pytest.raises(ValueError, match="expected n and collected of at least 2, got 1 and 5"):
        AdaptivePlan(n=1, collected=5)
    with pytest.raises(UsageError, match="has no mapper for the carrier token"):
        evaluate_adaptive(model, AdaptivePlan(carrier="token"))


def test_the_command(cli, marked_model, tmp_path, monkeypatch, folders):
    # Hundreds of photographs take their time.
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "heldout").symlink_to(folders["heldout"])
    (tmp_path / "photos" / "train").symlink_to(folders["training"])
    monkeypatch.setattr("privgen.evaluation.adaptive.images.heldout_photos", lambda: tmp_path / "photos" / "heldout")
    small = ("--n", 2, "--collected", 3, "--epsilon", 4, "--steps", 2, "--fit-steps", 2, "--carrier", "latent")
    options = ("--model", marked_model, *small, "--device", "cpu", "-o", tmp_path / "results")
    result = cli("evaluate", "adaptive", *options, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == json.loads((tmp_path / "results" / "results.json").read_text())
    assert (record["n"], record["steps"]) == (2, 2)
    again = cli("evaluate", "adaptive", *options)
    assert again.exit_code == 1
    assert "results.json exists" in again.stderr
    text = cli("evaluate", "adaptive", *options, "--overwrite")
    assert "detected 1e-3" in text.stdout
    assert "averaging_3" in text.stdout
