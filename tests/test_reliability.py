"""Short runs of `make fuzz` and `make chaos`."""

import importlib.util
import subprocess
import sys

import pytest


@pytest.fixture(scope="module")
def fuzz(root):
    spec = importlib.util.spec_from_file_location("fuzz", root / "tests" / "fuzz.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["fuzz"] = module  # where dataclasses look for their module
    spec.loader.exec_module(module)
    return module


def test_damaged_files_are_read_or_refused(fuzz, tmp_path):
    for name, kind in fuzz.kinds().items():
        counts, faults = fuzz.fuzz(kind, 20, 7, tmp_path / name)
        assert faults == []
        assert counts.total() == 20


def test_a_fault_is_seen_and_kept(fuzz, tmp_path):
    kind = fuzz.Kind("note.txt", b"some text", lambda path: path.read_text(encoding="ascii"))
    counts, faults = fuzz.fuzz(kind, 50, 0, tmp_path)
    assert len(faults) == 50 - counts["read"] > 0
    assert all("UnicodeDecodeError" in fault for fault in faults)
    assert len(list(tmp_path.glob("fault-*-note.txt"))) == len(faults)


@pytest.mark.slow
def test_killed_commands_lose_nothing(root):
    result = subprocess.run(
        [sys.executable, root / "tests" / "chaos.py", "--kills", "8"], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stdout
