"""What the docs show is what the committed records say."""

import importlib.util
import json

import pytest

from privgen.evaluation.training_settings import METHODS, SETTINGS


RECORDS = "docs/results"


@pytest.fixture(scope="module")
def training(root):
    return json.loads((root / "docs" / "results" / "training.json").read_text())


@pytest.mark.parametrize(
    ("page", "script", "arguments", "name", "table"),
    [
        ("docs/immiscible", "training_table", f" {RECORDS}/training.json", "training", lambda m, r: m.table(r)),
        ("docs/immiscible", "assignment", "", "assignment", lambda m, r: m.markdown(r["table"])),
        (
            "docs/evaluation",
            "hallucination_table",
            f" {RECORDS}/hallucination.json",
            "hallucination",
            lambda m, r: m.tables(r),
        ),
        ("docs/evaluation", "robustness_table", f" {RECORDS}/robustness.json", "robustness", lambda m, r: m.full(r)),
        ("README", "robustness_table", f" {RECORDS}/robustness.json --short", "robustness", lambda m, r: m.short(r)),
    ],
)
def test_tables_are_those_of_the_records(root, page, script, arguments, name, table):
    spec = importlib.util.spec_from_file_location(script, root / "benchmarks" / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (root / f"{page}.md").read_text()
    start = f"<!-- table: python benchmarks/{script}.py{arguments} -->\n"
    shown = text.partition(start)[2].partition("\n<!-- end of table -->")[0]
    assert shown == table(module, json.loads((root / "docs" / "results" / f"{name}.json").read_text()))


def test_the_record_is_of_what_is_measured_now(training):
    settings = {f"{name} {s.sampler}-{n}" for name, s in SETTINGS.items() for n in s.sampling if "scaled" not in name}
    assert training["settings"].keys() == settings
    for row in training["settings"].values():
        assert row["methods"].keys() < METHODS.keys()
        assert row["auto"] in row["methods"]
    assert (training["seeds"], training["options"]["steps"]) == (3, 400)
