"""What is measured of marks of objects: on cases whose answers are known, and once from end to end."""

import json

import numpy as np
import pytest
import torch

from privgen.data.scenes import draw
from privgen.evaluation.objects.cases import PhotographSource, SceneSource, overlapping_spec
from privgen.evaluation.objects.evaluate import ObjectsPlan
from privgen.evaluation.objects.log import LOG, Log, Row
from privgen.evaluation.objects.readings import Reading, Written, crop_half, pasted, read, read_alone, written
from privgen.evaluation.objects.run import measure
from privgen.evaluation.objects.summary import of_photographs, of_scenes, scores, write_scores
from privgen.evaluation.watermark.generation import draw_keys
from privgen.evaluation.workers import Processes
from privgen.hub import load_pipeline
from privgen.watermark.objects.read import locate


STRANGERS = draw_keys(2, torch.Generator().manual_seed(9), "stranger")


@pytest.fixture(scope="module")
def case(photo_files):
    return PhotographSource(photo_files[:1], seed=3).case(0)


@pytest.fixture(scope="module")
def mini():
    return load_pipeline("mini")


@pytest.fixture(scope="module")
def scenes(mini):
    """A source of scenes with two objects."""
    return SceneSource(mini, "two_objects", seed=3)


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
    found = write_scores([written(case)])
    assert found["mask_iou"].value == 1
    assert found["psnr_outside_db"].value == 100
    assert 0.3 < found["background_bit_accuracy"].value < 0.7
    assert 30 < found["object_psnr"].value < 38


def test_keys_that_are_not_looked_for_count_in_the_correction(case):
    alone = read_alone(case.marked, case.truth, case.keys, 4)
    plain = [place.p_value for place in locate(case.marked, case.keys, search=True)]
    assert alone.p_values == pytest.approx([3 * p for p in plain], abs=0)
    assert alone.strangers == ()
    assert min(alone.overlaps) > 0.3


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
    assert scores([Reading((48,), (1e-9,), (), (), ())])["false_owner_rate"] is None


def test_overlapping_scenes_overlap():
    scene = draw(overlapping_spec(5))
    back = draw(type(scene.spec)(scene.spec.objects[:1], scene.spec.colour))
    kept = scene.masks[0].sum() / back.masks[0].sum()
    assert 0.4 < kept <= 0.6


def test_rows_are_summed_up_by_setting():
    def row(setting, number, matches, **changed):
        count = len(matches)
        reading = Reading(matches, (1e-9,) * count, (0.5,) * count, (0.1, 0.2, 0.05)[:count], (False,))
        names = {"as_is": reading, "as_is_jpeg_75": reading, **dict.fromkeys(changed, reading)}
        return Row(setting, number, Written((31.0,) * count, (0.7,) * count, (0.5,) * count, 60.0), names)

    one = [row("one_object", i, (48 - i,), crop_half=1, pasted=1) for i in range(2)]
    two = [row("overlap", i, (24, 48)) for i in range(2)]
    photographs = [row("photographs", 0, (48, 40)), row("photographs", 1, (48, 48, 24))]
    found = of_scenes([*one, *two, *photographs])
    assert list(found) == ["one_object", "one_object_jpeg_75", "crop_half", "pasted", "overlap", "overlap_jpeg_75"]
    assert found["pasted"]["bit_accuracy"].value == pytest.approx(95 / 96)
    assert found["overlap"]["mask_iou"].value == 0.7
    assert "mask_iou" not in found["overlap_jpeg_75"]
    by_area = of_photographs([*one, *photographs])
    assert set(by_area) == {
        n + s for n in ("two_objects", "three_objects", "area_5", "area_10", "area_20") for s in ("", "_jpeg_75")
    }
    assert by_area["area_20"]["bit_accuracy"].value == pytest.approx(88 / 96)


@pytest.mark.parametrize(("n", "photographs"), [(1, 0), (2, -1)])
def test_too_few_cases_are_refused(n, photographs):
    with pytest.raises(ValueError, match="expected"):
        ObjectsPlan(n, photographs=photographs)


def test_a_longer_run_goes_on_from_a_shorter_one(scenes, tmp_path):
    short = measure([(scenes, 1)], 3, Log(tmp_path), Processes())
    longer = measure([(scenes, 2)], 3, Log(tmp_path), Processes())
    assert longer[:1] == short
    assert measure([(scenes, 2)], 3, Log(None), Processes()) == longer
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert len(lines) == 2
    lines[0]["written"]["psnr_outside"] = 12.5
    (tmp_path / LOG).write_text("".join(json.dumps(line) + "\n" for line in lines))
    [taken_up] = measure([(scenes, 1)], 3, Log(tmp_path), Processes())
    assert taken_up.written.psnr_outside == 12.5


def test_other_work_is_not_taken_up(mini, scenes, photo_files):
    sources = [scenes, SceneSource(mini, "two_objects", 4), SceneSource(mini, "overlap", 3)]
    sources += [PhotographSource(photo_files[:2], 3), PhotographSource(photo_files[2:4], 3)]
    assert len({source.work(number) for source in sources for number in (0, 1)}) == 2 * len(sources)


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
