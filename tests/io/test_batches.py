import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from privgen.errors import PrivgenError, UsageError
from privgen.io.batches import Ledger, name_outputs
from privgen.io.files import iter_other_files
from privgen.io.fingerprints import file_fingerprint


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Makes empty files below a folder that is the current one."""
    monkeypatch.chdir(tmp_path)

    def make(*names):
        for name in names:
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        return names

    return make


def names(paths, **options):
    return {str(source): str(target) for source, target in name_outputs(paths, "out", **options).items()}


@pytest.mark.parametrize(
    ("sources", "expected"),
    [
        (["a.jpg", "b"], ["a.png", "b.png"]),
        (["b.png", "a.png", "b.png", "./b.png"], ["b.png", "a.png"]),
        (["a.jpg", "a.webp"], ["a.jpg.png", "a.webp.png"]),
        (["x/a.jpg", "y/a.jpg", "x/b.jpg"], ["x-a.png", "y-a.png", "b.png"]),
        (["x/a.jpg", "x/a.png", "y/a.jpg"], ["x-a.jpg.png", "x-a.png.png", "y-a.jpg.png"]),
        (["x/z/a.jpg", "y/z/a.jpg"], ["x-z-a.png", "y-z-a.png"]),
        (["a.tar.jpg"], ["a.tar.png"]),
    ],
)
def test_names(files, sources, expected):
    files(*sources)
    assert list(names(sources).values()) == [f"out/{name}" for name in expected]


def test_names_with_suffixes_of_their_own(files):
    sources = files("x/a.jpg", "x/a.webp", "y/a.jpg")
    suffix_of = lambda source: source.suffix  # noqa: E731
    assert list(names(sources, suffix_of=suffix_of).values()) == ["out/x-a.jpg", "out/a.webp", "out/y-a.jpg"]


def test_folders_are_expanded(files):
    files("x/a.jpg", "x/b.jpg")
    assert list(names(["x"]).values()) == ["out/a.png", "out/b.png"]


def test_folders_inside_folders_keep_their_paths(files):
    files("x/a.jpg", "x/2024/a.jpg", "x/2024/05/a.jpg", "x/2024/05/a.webp", "x/.hidden/a.jpg", "y/2024/a.jpg")
    assert list(names(["x"], recursive=True).values()) == [
        "out/2024/05/a.jpg.png",
        "out/2024/05/a.webp.png",
        "out/2024/a.png",
        "out/a.png",
    ]
    assert set(names(["x/2024", "y"], recursive=True).values()) == {
        *("out/05/a.jpg.png", "out/05/a.webp.png", "out/a.png", "out/2024/a.png")
    }
    for output in ("x/out", "x", "x/2024/05"):
        with pytest.raises(UsageError, match="a folder that inputs come from"):
            name_outputs(["x"], output, recursive=True)


def test_one_file_becomes_one_file(files):
    files("x/a.jpg", "b.jpg", "c.gif")
    assert name_outputs(["b.jpg"], "new.webp") == {Path("b.jpg"): Path("new.webp")}
    for paths, output, match in [
        (["b.jpg"], "b.jpg", "is the image itself"),
        (["b.jpg", "x/a.jpg"], "new.png", "looks like a file; name a folder"),
        (["b.jpg"], "c.gif", "is not written; name a folder"),
        (["b.jpg"], "new.gif", "looks like a file; name a folder"),
    ]:
        with pytest.raises(UsageError, match=match):
            name_outputs(paths, output)


def test_other_files_in_folders_are_listed(files):
    files("x/a.jpg", "x/a.cr2", "x/b/c.mov", "x/marks.jsonl", "x/.DS_Store", "y.txt")
    assert iter_other_files(["x", "y.txt"]) == [Path("x/a.cr2")]
    assert iter_other_files(["x"], recursive=True) == [Path("x/a.cr2"), Path("x/b/c.mov")]


def test_ledger_knows_what_was_measured_in_folders_inside(tmp_path):
    target = tmp_path / "out" / "2024" / "a.png"
    ledger = Ledger.of(tmp_path / "out", "ledger.jsonl", "made so")
    ledger.write(target, b"data", figures={"psnr": 42.5, "x": math.inf})
    again = Ledger.of(tmp_path / "out", "ledger.jsonl", "made so")
    assert again.has(target)
    assert again.figures(target) == {"psnr": 42.5}
    assert not again.has(tmp_path / "out" / "a.png")
    single = Ledger.of(tmp_path / "one.png", "ledger.jsonl", "made so")
    single.write(tmp_path / "one.png", b"data")
    assert {path.name for path in tmp_path.iterdir()} == {"out", "one.png"}


def test_names_that_cannot_be_told_apart(files):
    sources = files("x/a.jpg", "y/a.jpg", "x-a.jpg")
    with pytest.raises(UsageError, match=r"a\.jpg and .*x-a\.jpg would both become x-a\.png"):
        names(sources)


@pytest.mark.parametrize("output", ["x", ".", "link", "x/../x"])
def test_never_among_the_inputs(files, tmp_path, output):
    files("x/a.jpg", "b.jpg")
    (tmp_path / "link").symlink_to(tmp_path / "x")
    with pytest.raises(UsageError, match="is a folder that inputs come from"):
        name_outputs(["b.jpg", "x"], output)


def test_never_over_the_target_of_a_link(files, tmp_path):
    files("x/a.png", "y/b.png")
    (tmp_path / "y" / "a.png").symlink_to(tmp_path / "x" / "a.png")
    with pytest.raises(UsageError, match="is a folder that inputs come from"):
        name_outputs(["y/a.png"], "x")


@pytest.mark.parametrize(("output", "match"), [("b.jpg", "b.jpg is a file"), ("new.png", "new.png looks like a file")])
def test_output_must_be_a_folder(files, output, match):
    files("x/a.jpg", "b.jpg")
    with pytest.raises(UsageError, match=match):
        name_outputs(["x"], output)


pieces = st.sampled_from(["a", "b", "a-b", "a.png", "-"])
sources = st.lists(st.tuples(st.lists(pieces, max_size=3), pieces, st.sampled_from([".png", ".jpg", ""])), max_size=8)


@given(sources=sources, keep_suffix=st.booleans())
def test_no_two_sources_share_an_output(sources, keep_suffix):
    """Files need not exist to be named, so that names alone are tested."""
    paths = list(dict.fromkeys(Path("in", *folders, name + suffix) for folders, name, suffix in sources))
    try:
        outputs = name_outputs(paths, "out", (lambda source: source.suffix) if keep_suffix else lambda source: ".png")
    except UsageError as error:
        assert "would both become" in str(error)  # noqa: PT017 - or nothing is raised
        return
    assert list(outputs) == paths
    assert len(set(outputs.values())) == len(paths)
    for source, output in outputs.items():
        assert output.parent == Path("out")
        assert source.stem in output.name
        assert output.name.endswith(source.suffix if keep_suffix else ".png")


def test_ledger_remembers(tmp_path):
    ledger = Ledger(tmp_path / "out" / "ledger.jsonl", "made so")
    target = tmp_path / "out" / "a.png"
    assert not ledger.has(target, "s")
    ledger.write(target, b"content", "s")
    assert target.read_bytes() == b"content"
    again = Ledger(tmp_path / "out" / "ledger.jsonl", "made so")
    for known in (ledger, again):
        assert known.has(target, "s")
        assert not known.has(target, "other source")
    assert not Ledger(tmp_path / "out" / "ledger.jsonl", "made otherwise").has(target, "s")
    target.write_bytes(b"changed")
    assert not again.has(target, "s")
    target.unlink()
    assert not again.has(target, "s")


def test_ledger_survives_a_line_cut_short(tmp_path):
    path = tmp_path / "ledger.jsonl"
    Ledger(path, "x").write(tmp_path / "a.png", b"a")
    with path.open("a") as file:
        file.write('{"output": "b')
    Ledger(path, "x").write(tmp_path / "b.png", b"b")
    ledger = Ledger(path, "x")
    assert ledger.has(tmp_path / "a.png")
    assert ledger.has(tmp_path / "b.png")


@pytest.mark.parametrize("existing", [True, False])
def test_ledger_forgets_what_was_not_written(tmp_path, python, existing):
    """A limit on the size of files makes the system itself refuse: the line fits, the image does not."""
    pytest.importorskip("resource")
    path, target = tmp_path / "ledger.jsonl", tmp_path / "b.png"
    if existing:
        Ledger(path, "x").write(tmp_path / "a.png", b"a")
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    code = f"""
import resource
from pathlib import Path
from privgen.errors import PrivgenError
from privgen.io.batches import Ledger
ledger = Ledger({str(path)!r}, "x")
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    ledger.write(Path({str(target)!r}), bytes(10_000))
except PrivgenError as error:
    print(error, ledger.has(Path({str(target)!r})))
"""
    assert "b.png was not written: the file is larger than allowed" in (said := python("-c", code).stdout)
    assert said.endswith("False\n")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_ledger_refuses_existing_files(tmp_path):
    (tmp_path / "a.png").write_bytes(b"precious")
    ledger = Ledger(tmp_path / "ledger.jsonl", "x")
    with pytest.raises(PrivgenError, match="exists"):
        ledger.write(tmp_path / "a.png", b"a")
    assert (tmp_path / "a.png").read_bytes() == b"precious"
    assert not (tmp_path / "ledger.jsonl").exists()
    ledger.write(tmp_path / "a.png", b"a", overwrite=True)
    assert ledger.has(tmp_path / "a.png")


def test_ledger_is_json_lines(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl", "x")
    for name in ("a.png", "b.png"):
        ledger.write(tmp_path / name, name.encode(), "s")
    records = [json.loads(line) for line in (tmp_path / "ledger.jsonl").read_text().splitlines()]
    assert [record["output"] for record in records] == ["a.png", "b.png"]
    assert records[0]["output_sha256"] == file_fingerprint(tmp_path / "a.png")


def test_two_processes_in_one_folder_lose_nothing(tmp_path):
    """Each has its own ledger, read before the other wrote."""
    one, two = (Ledger(tmp_path / "marks.jsonl", "alice") for _ in range(2))
    one.write(tmp_path / "a.png", b"a", "source a")
    assert two.has(tmp_path / "a.png", "source a")
    assert not two.has(tmp_path / "a.png", "source b")
    two.write(tmp_path / "a.png", b"a", "source a")  # made already, so there is nothing to do
    with pytest.raises(PrivgenError, match="exists"):
        two.write(tmp_path / "a.png", b"b", "source b")
    two.write(tmp_path / "b.png", b"b", "source b")
    again = Ledger(tmp_path / "marks.jsonl", "alice")
    assert again.has(tmp_path / "a.png", "source a")
    assert again.has(tmp_path / "b.png", "source b")
    assert len((tmp_path / "marks.jsonl").read_text().splitlines()) == 2
