import json
import shutil

import pytest

from privgen.models.classifier import SceneClassifier


@pytest.fixture
def model(tiny, tmp_path):
    """The options that name a tiny model and classifier."""
    tiny.tiny_pipeline("sd21").save_pretrained(tmp_path / "model")
    SceneClassifier((8,), 128).save_pretrained(tmp_path / "classifier")
    return ("--model", tmp_path / "model", "--classifier", tmp_path / "classifier", "--device", "cpu")


def test_a_model(cli, model, tmp_path, monkeypatch):
    from privgen.evaluation.text_to_image import autoencoder

    # Hundreds of photographs take their time.
    monkeypatch.setattr(autoencoder, "load_photos", lambda folder: _grey())
    options = ("--n", 2, "--steps", 1, "--seed", 3, "-o", tmp_path / "results", "--json")
    result = cli("evaluate", "model", *model, *options)
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["n"], record["seed"], record["steps"]) == (2, 3, 1)
    assert record["model"] == str(tmp_path / "model")
    assert record == json.loads((tmp_path / "results" / "results.json").read_text())
    again = cli("evaluate", "model", *model, *options)
    assert again.exit_code == 1
    assert "results.json exists" in again.stderr


def _grey():
    import numpy as np

    return (np.full((40, 40, 3), 99, np.uint8),) * 2


def test_no_classifier(cli, model, tmp_path):
    result = cli("evaluate", "model", *model, "--classifier", tmp_path / "none")
    assert result.exit_code == 1
    assert "none holds no classifier of scenes" in result.stderr


def test_a_watermark(cli, marked_model, photo_files, tmp_path, monkeypatch):
    from privgen.evaluation.watermark import evaluate as watermark

    for folder in ("heldout", "train"):
        (tmp_path / folder).mkdir()
        shutil.copy(photo_files[3], tmp_path / folder)
    # Hundreds of photographs take their time.
    monkeypatch.setattr(watermark, "heldout_photos", lambda: tmp_path / "heldout")
    small = ("--n", 2, "--steps", 2, "--negatives", 3, "--photos", 1, "--seed", 3, "--carrier", "latent")
    options = ("--model", marked_model, "--device", "cpu", *small, "-o", tmp_path / "results")
    result = cli("evaluate", "watermark", *options, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["n"], record["seed"], record["carrier"], record["negatives"]) == (2, 3, "latent", 5)
    assert record["carriers"]["token"] is None
    assert record == json.loads((tmp_path / "results" / "results.json").read_text())
    again = cli("evaluate", "watermark", *options)
    assert again.exit_code == 1
    assert "results.json exists" in again.stderr
    text = cli("evaluate", "watermark", *options, "--overwrite")
    assert text.exit_code == 0, text.output
    assert "photos bit accuracy" in text.stdout
    figures = json.loads((tmp_path / "results" / "results.json").read_text())
    varying = {"time_ratio", "carriers", "ci95"}
    assert {k: v for k, v in figures.items() if k not in varying} == {
        k: v for k, v in record.items() if k not in varying
    }
    refined = json.loads(cli("evaluate", "watermark", *options, "--overwrite", "--robust-steps", 1, "--json").stdout)
    assert (record["robust_steps"], refined["robust_steps"]) == (0, 1)
    assert refined["ssim"] != record["ssim"]
