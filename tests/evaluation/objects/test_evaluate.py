"""What is measured of marks of objects: on cases whose answers are known, and once from end to end."""

import json

import numpy as np
import pytest
import torch

from privgen.data.scenes import draw
from privgen.evaluation.objects.cases import heldout_specs, overlapping_spec, photograph_cases
from privgen.evaluation.objects.readings import Reading, crop_half, pasted, read, scores, write_scores
from privgen.evaluation.watermark.generation import draw_keys


STRANGERS = draw_keys(2, torch.Generator().manual_seed(9), "stranger")


@pytest.fixture(scope="module")
def case(photo_files):
    [made] = photograph_cases(photo_files[:1], 1, seed=3)
    return made


def test_what_happens_to_images(case):
    rng = np.random.Generator(np.random.PCG64(0))
    height, width = case.plain.shape[1:]
    half, truth = crop_half(case.marked, case.truth, rng)
    assert half.shape[1] * half.shape[2] == pytest.approx(height * width / 2, rel=0.01)
    assert truth.shape[1:] == half.shape[1:]
    grey = torch.full_like(case.plain, 0.5)
    moved = (pasted(case, grey, rng) != round(0.5 * 255) / 255).any(0).float().mean()
    area = max(case.areas)
    assert 0.4 * area < float(moved) < 2.1 * area


def test_photographs_have_ellipses_of_the_areas_that_were_asked_for(case):
    assert min(case.plain.shape[1:]) == 512
    assert sorted(case.areas) == pytest.approx([0.05, 0.1], rel=0.05)
    assert not bool((case.truth.sum(0) > 1).any())


def test_marks_of_photographs_are_read(case):
    reading = read(case.marked, case.truth, case.keys, STRANGERS)
    assert max(reading.p_values) < 1e-6
    assert reading.strangers == (False, False)
    assert min(reading.overlaps) > 0.3
    plain = read(case.plain, case.truth, case.keys, STRANGERS)
    assert min(plain.p_values) > 1e-6
    assert plain.matches == (24, 24)
    assert plain.overlaps == (0.0, 0.0)


def test_how_marks_were_written(case):
    written = write_scores([case])
    assert written["mask_iou"].value == 1
    assert written["psnr_outside_db"].value == 100
    assert 0.3 < written["background_bit_accuracy"].value < 0.7
    assert 30 < written["object_psnr"].value < 38


def test_scores_by_hand():
    readings = [
        Reading((48, 24), (1e-9, 0.5), (0.8, 0.0), (0.1, 0.3), (False,)),
        Reading((36,), (1e-4,), (0.4,), (0.1,), (True,)),
    ]
    found = {name: item.value for name, item in scores(readings).items()}
    assert found["bit_accuracy"] == pytest.approx((1 + 0.5 + 0.75) / 3)
    assert (found["tpr_1e-3"], found["tpr_1e-6"]) == pytest.approx((2 / 3, 1 / 3))
    assert found["false_owner_rate"] == 0.5
    assert found["localisation_iou"] == pytest.approx(0.4)
    assert readings[0].of_area(0.3) == Reading((24,), (0.5,), (0.0,), (0.3,), (False,))


def test_overlapping_scenes_overlap():
    scene = draw(overlapping_spec(5))
    back = draw(type(scene.spec)(scene.spec.objects[:1], scene.spec.colour))
    kept = scene.masks[0].sum() / back.masks[0].sum()
    assert 0.4 < kept <= 0.6
    assert len(heldout_specs("overlap", 3, 0)) == 3
    assert len(heldout_specs("three_objects", 2, 0)[0].objects) == 3


def test_from_end_to_end(cli, tmp_path):
    result = cli("evaluate", "objects", "--n", "2", "--photographs", "0", "--json", "-o", tmp_path / "results")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record == json.loads((tmp_path / "results" / "results.json").read_text())
    kept = ("one_object", "two_objects", "three_objects", "overlap", "crop_half", "pasted")
    assert set(record["scenes"]) == {name + suffix for name in kept for suffix in ("", "_jpeg_75")}
    one = record["scenes"]["one_object"]
    assert one["tpr_1e-6"]["value"] == 1
    assert one["psnr_outside_db"]["value"] > 50
    assert record["time_ratio"] > 0
