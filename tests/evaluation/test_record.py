import json
import math
from dataclasses import dataclass, field

import pytest
from PIL import Image

from privgen.environment import Environment, environment
from privgen.errors import PrivgenError
from privgen.evaluation.intervals import Measured
from privgen.evaluation.record import RESULTS, Report, check_output, finite


FILES = ("red.png", "page.html")


@dataclass(frozen=True)
class Colours(Report):
    red: Measured
    environment: Environment
    pictures: dict[str, Image.Image] = field(repr=False, compare=False)
    pages: dict[str, str] = field(repr=False, compare=False)

    def figures(self):
        return {"red": self.red, "by_name": {"blue": (1, math.inf)}}


@dataclass(frozen=True)
class Plain(Report):
    environment: Environment

    def figures(self):
        return {}


@pytest.fixture
def report():
    pictures = {"red": Image.new("RGB", (4, 3), "red")}
    return Colours(Measured(0.5, 2, math.nan, 0.9), environment(), pictures, {"page.html": "<p>é"})


def test_a_record_has_only_what_json_has(report):
    record = report.record()
    assert record["red"] == {"value": 0.5, "n": 2, "low": None, "high": 0.9}
    assert record["by_name"] == {"blue": [1, None]}
    assert list(record)[-1] == "environment"
    assert record["environment"]["python"] == environment().python
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert finite({1: -math.inf, 2: "nan", 3: True, 4: 0}) == {"1": None, "2": "nan", "3": True, "4": 0}


def test_a_report_is_saved_with_its_pictures(report, tmp_path):
    folder = tmp_path / "new" / "folder"
    check_output(folder, FILES)
    report.save(folder)
    assert {path.name for path in folder.iterdir()} == {RESULTS, *FILES}
    assert json.loads((folder / RESULTS).read_text()) == report.record()
    with Image.open(folder / "red.png") as picture:
        assert picture.getpixel((0, 0)) == (255, 0, 0)
    assert (folder / "page.html").read_text(encoding="utf-8") == "<p>é"
    Plain(environment()).save(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {RESULTS, "new"}


@pytest.mark.parametrize("existing", [RESULTS, *FILES])
def test_nothing_is_replaced_unasked(report, tmp_path, existing):
    (tmp_path / existing).write_text("mine")
    with pytest.raises(PrivgenError, match=f"{existing} exists; .* --overwrite"):
        check_output(tmp_path, FILES)
    with pytest.raises(PrivgenError, match=f"{existing} exists"):
        report.save(tmp_path)
    assert (tmp_path / existing).read_text() == "mine"
    check_output(tmp_path, FILES, overwrite=True)
    report.save(tmp_path, overwrite=True)
    assert json.loads((tmp_path / RESULTS).read_text())["red"]["value"] == 0.5
