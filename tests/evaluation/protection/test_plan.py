"""Plans of the study: which cells a preset has, and what is refused."""

from collections import Counter

import pytest

from privgen.cli import evaluate_protection as command
from privgen.data.scenes import HELDOUT_NOUNS
from privgen.errors import PrivgenError, UsageError
from privgen.evaluation.protection import plan
from privgen.evaluation.protection.plan import CLEAN, CONTROL, UNTRAINED, StudyPlan, scene_subjects
from privgen.evaluation.protection.subjects import photo_subject
from privgen.protection.registry import METHODS


def cells(preset, models=("main", "mini"), **options):
    names = [CONTROL, *(name for name in plan.PRESETS[preset].methods if name != CONTROL)]
    return StudyPlan(preset, **options).cells(models, scene_subjects(preset), names)


def test_standard_measures_everything_in_few_cells():
    """Cells take about 75 s each; 170 of them are less than two hours for two processes."""
    trained = [cell for cell in cells("standard") if cell.method != UNTRAINED]
    assert len(trained) <= 170
    counts = Counter((cell.purification, cell.fraction) for cell in trained)
    assert set(counts) == {*((name, 1) for name in plan.PURIFICATIONS), ("none", 0.67), ("none", 0.5)}
    assert {cell.model for cell in trained} == {"main", "mini"}


def test_slow_methods_are_measured_on_few_pairs_unless_asked_for():
    names = plan.PRESETS["standard"].methods
    pairs = {
        chosen: {
            (cell.subject, cell.seed)
            for cell in StudyPlan("standard", methods=chosen).cells(("main",), scene_subjects("standard"), names)
            if cell.method == "shift"
        }
        for chosen in ((), ("shift",))
    }
    assert (len(pairs[()]), len(pairs[("shift",)])) == (plan.SLOW_PAIRS, 8)


def test_methods_of_your_choice_go_through_all_that_a_preset_measures():
    own = StudyPlan("standard", methods=("mist",)).cells(("main", "mini"), scene_subjects("standard"), ["mist"])
    found = {(cell.purification, cell.fraction, cell.model) for cell in own if cell.method == "mist"}
    assert found >= {(name, 1, "main") for name in plan.PURIFICATIONS}
    assert found >= {("none", 0.67, "main"), ("none", 0.5, "main"), ("none", 1, "mini")}


@pytest.mark.parametrize("preset", plan.PRESETS)
def test_every_cell_has_its_clean_and_untrained_ones(preset):
    found = set(cells(preset))
    for cell in found:
        for method in (CLEAN, UNTRAINED):
            assert plan.Cell(cell.model, cell.adversary, cell.subject, cell.seed, method) in found
    assert len(found) == len(cells(preset)), "no cell is there twice"


def test_subjects_are_not_those_of_development():
    assert set(scene_subjects("full")) <= set(HELDOUT_NOUNS) - set(plan.DEVELOPMENT)


def test_adversaries_of_your_choice():
    assert {cell.adversary for cell in cells("standard", adversaries=("dreambooth",))} == {"dreambooth"}
    assert {cell.adversary for cell in cells("standard", adversaries=("lora",))} == {"lora"}


def test_efforts_are_a_quarter_a_half_and_all():
    assert StudyPlan(methods=("noise",)).efforts(240) == (60, 120, 240)
    assert StudyPlan(methods=("noise",), longest=8).efforts(240) == (2, 4, 8)


def test_the_control_is_always_there():
    assert list(StudyPlan(methods=("encoder",)).resolved_methods()) == ["noise", "encoder"]


def test_the_command_names_all_methods_and_adversaries():
    assert command.METHODS == METHODS
    assert command.ADVERSARIES == plan.ADVERSARIES


BAD = [
    ({"preset": "tiny"}, "No preset is called 'tiny'"),
    ({"adversaries": ("lora", "gan")}, "No adversary is called 'gan'"),
    ({"methods": ("glaze",)}, "'glaze' is not a method of protection"),
    ({"longest": 3}, "give at least 4"),
    ({"psnr": 0}, "give a number above 0"),
    ({"psnr": float("nan")}, "give a number above 0"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_plans(options, message):
    with pytest.raises(UsageError, match=message):
        StudyPlan(**{"methods": ("noise",), **options})


def test_bad_subjects(tmp_path, photo_files):
    with pytest.raises(UsageError, match="expected at least 3 images of the subject, got 1"):
        photo_subject(photo_files[:1])
    files = [tmp_path / f"{i}.png" for i in range(3)]
    for file in files:
        file.write_bytes(b"no image")
    with pytest.raises(PrivgenError, match=r"0\.png"):
        photo_subject([tmp_path])
