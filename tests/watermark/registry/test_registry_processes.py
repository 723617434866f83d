"""Several processes write one registry while another reads: nothing is lost, and no ID is issued twice."""

import subprocess
import sys
from pathlib import Path

import pytest

from privgen.watermark.key import Key
from privgen.watermark.registry.registry import Registry


SCRIPT = Path(__file__).with_name("insert_ids.py")


@pytest.mark.parametrize(("writers", "inserts"), [(4, 100), pytest.param(8, 500, marks=pytest.mark.slow)])
def test_processes_that_write_at_once_lose_nothing(tmp_path, writers, inserts):
    path = tmp_path / "keys.db"
    with Registry.create(path) as registry:
        registry.add(Key.new("alice"))
    commands = [("read", writers * inserts), *((writer, inserts) for writer in range(writers))]
    processes = [subprocess.Popen([sys.executable, SCRIPT, path, *map(str, command)]) for command in commands]
    try:
        assert [process.wait(timeout=300) for process in processes[1:]] == [0] * writers
        assert processes[0].wait(timeout=60) == 0, "the reader did not see all IDs"
    finally:
        for process in processes:
            process.kill()
    with Registry.open(path) as registry:
        issued = list(registry.issued())
        assert registry.check() == (1, writers * inserts)
    assert len({item.payload for item in issued}) == writers * inserts
    assert {item.issued_for.note for item in issued} == {f"{w}/{i}" for w in range(writers) for i in range(inserts)}
