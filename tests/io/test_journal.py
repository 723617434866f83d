import json
import os
import string
import subprocess
import sys
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privgen.errors import PrivgenError
from privgen.io.journal import Journal


texts = st.text(st.one_of(st.sampled_from(string.printable), st.characters(exclude_categories=["Cs"])), max_size=8)
values = st.one_of(st.none(), st.integers(), st.floats(allow_nan=False), texts, st.lists(st.integers(), max_size=3))
records = st.dictionaries(texts, values, max_size=4)


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("journal") / "journal.jsonl"


def read(path, work=None):
    return Journal(path).read(dict, work)


def append_and_fail(path, error):
    with Journal(path).appended([{"a": 2}]):
        assert read(path)[-1] == {"a": 2}
        raise error


@given(
    before=st.lists(records, min_size=1, max_size=5),
    after=st.lists(records, min_size=1, max_size=3),
    cut=st.floats(0, 1),
)
def test_cut_at_any_byte(path, before, after, cut):
    """A journal is read as exactly the records whose lines are whole, and new ones come after these."""
    path.write_bytes(b"")
    Journal(path).append(before)
    content = path.read_bytes()
    kept = content[: round(cut * len(content))]
    path.write_bytes(kept)
    whole = before[: kept.count(b"\n")]
    assert read(path) == whole
    assert path.read_bytes() == kept
    Journal(path).append(after)
    assert read(path) == whole + after


@given(before=st.lists(records, max_size=3), strange=st.binary(max_size=20), after=st.lists(records, max_size=3))
def test_strange_lines_cost_nothing_else(path, before, strange, after):
    path.write_bytes(b"")
    Journal(path).append(before)
    with path.open("ab") as file:
        file.write(strange + b"\n")
    Journal(path).append(after)
    assert [record for record in read(path) if record in before + after] == before + after


@pytest.mark.parametrize("line", [b"", b"{", b"[1]", b"1", b'"work"', b"null", b"\xff\xfe", b"[" * 100_000, b"{}\r{}"])
def test_lines_that_are_no_objects(tmp_path, line):
    (tmp_path / "a").write_bytes(b'{"a": 1}\n' + line + b'\n{"a": 2}\n')
    assert read(tmp_path / "a") == [{"a": 1}, {"a": 2}]


def test_records_of_other_work_and_of_another_form(tmp_path):
    path = tmp_path / "new" / "a"
    Journal(path).append([{"work": "x", "n": 1}, {"work": "y", "n": 2}, {"work": "x"}, {"n": 4}])
    Journal(path).append([{"work": "x", "n": "five"}, {"work": "x", "n": 6}])
    assert Journal(path).read(lambda record: int(record["n"]), "x") == [1, 6]
    assert Journal(path).read(lambda record: int(record["n"])) == [1, 2, 4, 6]


def test_a_mistake_in_parsing_is_not_hidden(tmp_path):
    Journal(tmp_path / "a").append([{}])
    with pytest.raises(ZeroDivisionError):
        Journal(tmp_path / "a").read(lambda record: 1 / 0)


def test_lines_are_json_for_others(tmp_path):
    Journal(tmp_path / "a").append([{"a": "é\n\u2028"}, {"b": 1 / 3}])
    assert [json.loads(line) for line in (tmp_path / "a").read_text("ascii").splitlines()] == [
        {"a": "é\n\u2028"},
        {"b": 1 / 3},
    ]


def test_nothing_is_kept_without_a_path():
    journal = Journal(None)
    journal.append([{"a": 1}])
    with journal.appended([{"a": 1}]):
        pass
    assert journal.read(dict) == []


@pytest.mark.parametrize("existing", [None, b"", b'{"a": 1}\n'])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_taken_back_if_the_block_fails(tmp_path, existing, error):
    path = tmp_path / "a"
    if existing is not None:
        path.write_bytes(existing)
    with pytest.raises(error):
        append_and_fail(path, error)
    assert (path.read_bytes() if path.exists() else None) == existing


def test_a_full_disk_leaves_nothing_of_an_append(tmp_path, python):
    """A limit on the size of files makes the system itself refuse in the middle of writing."""
    pytest.importorskip("resource")
    code = f"""
import resource
from privgen.io.journal import Journal
journal = Journal({str(tmp_path / "a")!r})
journal.append([{{"a": 1}}])
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
journal.append([{{"a": 2}}, {{"b": "x" * 1000}}])
"""
    assert "a was not written: the " in python("-c", code).stderr
    assert read(tmp_path / "a") == [{"a": 1}]
    assert (tmp_path / "a").read_bytes() == b'{"a": 1}\n'


def test_what_cannot_be_written_or_read(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    assert read(tmp_path / "file" / "a") == []
    with pytest.raises(PrivgenError, match=r"a was not written: a part of its path is a file"):
        Journal(tmp_path / "file" / "a").append([{}])
    with pytest.raises(PrivgenError, match=r"folder was not written: "):
        Journal(tmp_path / "folder").append([{}])
    with pytest.raises(PrivgenError, match=r"folder cannot be read: "):
        read(tmp_path / "folder")


def test_processes_read_each_others_files(tmp_path):
    for rank in (0, 2, 1):
        Journal.of_process(tmp_path, "rows.jsonl", rank).append([{"rank": rank}])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows-1.jsonl", "rows-2.jsonl", "rows.jsonl"]
    (tmp_path / "rows-of-others").touch()
    for rank in range(4):
        others = [number for number in (0, 1, 2) if number != rank]
        found = Journal.of_process(tmp_path, "rows.jsonl", rank).read(lambda record: record["rank"])
        assert found == others + [rank] * (rank < 3)
    assert Journal.of_process(None, "rows.jsonl", 1).read(dict) == []


@pytest.mark.skipif(os.name != "posix", reason="POSIX locks")
@pytest.mark.parametrize("before", [[], [{"row": 0}]])
def test_writers_wait_for_each_other(tmp_path, before):
    """A second process appends while the first takes its lines back, which must not cost those of the second.

    If there was no file before, the first removes the file that the second waits for.
    """
    path = tmp_path / "rows.jsonl"
    if before:
        Journal(path).append(before)
    code = "import sys; from privgen.io.journal import Journal; Journal(sys.argv[1]).append([{'row': 2}])"
    with suppress(RuntimeError), Journal(path).appended([{"row": 1}]):
        other = subprocess.Popen([sys.executable, "-c", code, path])
        with pytest.raises(subprocess.TimeoutExpired):
            other.wait(0.7)
        raise RuntimeError("no room")
    assert other.wait(20) == 0
    assert Journal(path).read(dict) == [*before, {"row": 2}]
