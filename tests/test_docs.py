"""Tables in the docs are what the committed records say."""

import importlib.util
import json

import pytest

from privgen.evaluation.training_settings import METHODS, SETTINGS


@pytest.fixture(scope="module")
def training(root):
    return json.loads((root / "docs" / "results" / "training.json").read_text())


def test_the_table_of_trainings_is_that_of_the_record(training, root):
    spec = importlib.util.spec_from_file_location("training_table", root / "benchmarks" / "training_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (root / "docs" / "immiscible.md").read_text()
    start = "<!-- table: python benchmarks/training_table.py docs/results/training.json -->\n"
    shown = text.partition(start)[2].partition("\n<!-- end of table -->")[0]
    assert shown == module.table(training)


def test_the_record_is_of_what_is_measured_now(training):
    settings = {f"{name} {s.sampler}-{n}" for name, s in SETTINGS.items() for n in s.sampling if "scaled" not in name}
    assert training["settings"].keys() == settings
    for row in training["settings"].values():
        assert row["methods"].keys() < METHODS.keys()
        assert row["auto"] in row["methods"]
    assert (training["seeds"], training["options"]["steps"]) == (3, 400)
