"""What the docs show is what the committed records say."""

import importlib.util
import json

import pytest

from privgen.evaluation.noise_assignment.settings import METHODS, SETTINGS


RECORDS = "docs/results"


@pytest.fixture(scope="module")
def training(root):
    return json.loads((root / "docs" / "results" / "training.json").read_text())


ROBUSTNESS = f"robustness_table.py {RECORDS}/robustness.json"
ROBUST = f"{RECORDS}/robustness-16.json {RECORDS}/robustness-robust-steps.json"


@pytest.mark.parametrize(
    ("page", "command", "table"),
    [
        ("docs/immiscible", f"training_table.py {RECORDS}/training.json", lambda m, r: m.table(r)),
        ("docs/immiscible", "assignment.py", lambda m, r: m.markdown(r["table"])),
        ("docs/evaluation", f"hallucination_table.py {RECORDS}/hallucination.json", lambda m, r: m.tables(r)),
        ("docs/evaluation", ROBUSTNESS, lambda m, r: m.full(r)),
        ("docs/watermark", f"robustness_table.py {ROBUST}", lambda m, *r: m.compared(*r)),
        ("README", f"{ROBUSTNESS} --short", lambda m, r: m.short(r)),
    ],
)
def test_tables_are_those_of_the_records(root, page, command, table):
    script, *arguments = command.split()
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), root / "benchmarks" / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    paths = [name for name in arguments if name.endswith(".json")] or [f"{RECORDS}/{spec.name}.json"]
    text = (root / f"{page}.md").read_text()
    start = f"<!-- table: python benchmarks/{command} -->\n"
    shown = text.partition(start)[2].partition("\n<!-- end of table -->")[0]
    assert shown == table(module, *(json.loads((root / path).read_text()) for path in paths))


def test_the_record_is_of_what_is_measured_now(training):
    settings = {f"{name} {s.sampler}-{n}" for name, s in SETTINGS.items() for n in s.sampling if "scaled" not in name}
    assert training["settings"].keys() == settings
    for row in training["settings"].values():
        assert row["methods"].keys() < METHODS.keys()
        assert row["auto"] in row["methods"]
    assert (training["seeds"], training["options"]["steps"]) == (3, 400)
