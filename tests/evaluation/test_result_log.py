import json

import pytest

from privgen.errors import PrivgenError
from privgen.evaluation.result_log import ResultLog
from privgen.io.journal import Journal


class Squares(ResultLog[int]):
    field = "square"

    def encode(self, value):
        return {"root": round(value**0.5)}

    def decode(self, record):
        return record["root"] ** 2


def test_results_are_taken_up(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    log = Squares(Journal(path))
    assert log.get("w", "m", 3) is None
    log.add("w", "easy", "m", 3, 16)
    log.add("w", "easy", "m", 3, 25)  # the last one counts
    log.add("w", "easy", "m", 4, 36)
    path.write_bytes(path.read_bytes() + b'{"work": "w", "method": "m", "seed": 5, "square": 1}\n{"work"')
    for known in (log, Squares(Journal(path))):
        assert [known.get("w", "m", seed) for seed in (3, 4, 5)] == [25, 36, None]
        assert known.get("other", "m", 3) is known.get("w", "other", 3) is None
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {"work": "w", "setting": "easy", "method": "m", "seed": 3, "square": {"root": 4}}


def test_in_memory_only():
    log = Squares(Journal(None))
    log.add("w", "easy", "m", 3, 16)
    assert log.get("w", "m", 3) == 16


def test_a_log_that_cannot_be_written(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(PrivgenError, match="was not written"):
        Squares(Journal(tmp_path / "file" / "log.jsonl")).add("w", "easy", "m", 3, 16)
