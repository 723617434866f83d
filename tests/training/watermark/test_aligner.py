"""An aligner is trained on marks that were made once, cut out, turned and put back."""

from dataclasses import replace

import pytest
import torch

from privgen.errors import PrivgenError
from privgen.models.aligner import Aligner
from privgen.training.watermark.aligner import AlignerRecipe, AlignerTask


@pytest.fixture(scope="module")
def recipe(root, tmp_path_factory):
    mini = root / "privgen" / "models" / "mini"
    return AlignerRecipe(
        vae=mini / "vae",
        photos=root / "privgen" / "data" / "photos" / "train",
        start=mini / "privgen",
        model=mini,
        marks=tmp_path_factory.mktemp("marks") / "marks.safetensors",
        counts=(2, 4, 4, 2),
        views=32,
    )


@pytest.fixture(scope="module")
def task(recipe):
    return AlignerTask(recipe, 0)


def test_marks_are_made_once(task, recipe):
    """Four sources in their order, and what is read from the file is what was made."""
    assert torch.bincount(task.bank.source.int()).tolist() == list(recipe.counts)
    changed = recipe.marks.stat().st_mtime_ns
    again = AlignerTask(recipe, 0)
    assert recipe.marks.stat().st_mtime_ns == changed
    for name in ("images", "changes", "bits", "source"):
        assert torch.equal(getattr(again.bank, name), getattr(task.bank, name)), name


def test_marks_of_other_settings_are_refused(recipe):
    with pytest.raises(PrivgenError, match="delete the file"):
        AlignerTask(replace(recipe, counts=(2, 2, 2, 2)), 0)


def test_an_image_does_not_depend_on_its_batch(task):
    whole, last = task.batch([5, 6, 7]), task.batch([7])
    for name, value in whole.items():
        torch.testing.assert_close(value[2:], last[name], rtol=0, atol=1e-6)


def test_it_reads_at_the_right_place(task):
    """And opposite marks hold opposite messages."""
    batch = task.batch(list(range(16)))
    batch["guess"] = batch["pose"]
    with torch.no_grad():
        right = float(task(batch)["bit_accuracy"])
        opposite = float(task(batch | {"change": -batch["change"]})["bit_accuracy"])
        wrong = float(task(batch | {"guess": batch["pose"].flip(0)})["bit_accuracy"])
    assert right > max(0.85, wrong + 0.15)
    assert opposite == pytest.approx(1 - right, abs=0.05)


def test_only_what_is_trained_gets_gradients(task):
    task(task.batch([0, 1]))["loss"].backward()
    moved = {name.split(".")[0] for name, value in task.named_parameters() if value.grad is not None}
    assert moved == {"aligner", "mean", "log_variance"}
    assert task.aligner.patterns.grad is None


def test_it_starts_from_an_extractor_too(recipe, tmp_path):
    for name in ("extractor", "latent_mapper"):
        (tmp_path / name).symlink_to(recipe.start / name)
    task = AlignerTask(replace(recipe, start=tmp_path), 0)
    assert float(task.aligner.patterns.abs().sum()) > 0
    task.export(tmp_path / "out")
    assert Aligner.from_pretrained(tmp_path / "out" / "aligner").config.n_bits == 48
