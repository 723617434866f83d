import errno
import os
import stat
from pathlib import Path

import pytest

from privgen.errors import PrivgenError, UsageError
from privgen.io.files import atomic_write, iter_image_files, refuse_existing, write_bytes, write_text


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def write_while_another_does(target):
    with atomic_write(target) as file:
        file.write(b"new")
        target.write_text("other")


def write_half(target, error):
    with atomic_write(target, overwrite=True) as file:
        file.write(b"half")
        raise error


def test_writes_bytes_and_text(tmp_path):
    write_bytes(tmp_path / "new" / "folder" / "a", b"\0\xff")
    write_text(tmp_path / "b", "é\n")
    assert (tmp_path / "new" / "folder" / "a").read_bytes() == b"\0\xff"
    assert (tmp_path / "b").read_bytes() == "é\n".encode()
    assert names(tmp_path) == ["b", "new"]


def test_name_appears_only_when_complete(tmp_path):
    target = tmp_path / "a"
    with atomic_write(target) as file:
        file.write(b"x")
        assert not target.exists()
        assert not [name for name in names(tmp_path) if not name.startswith(".")]
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_existing_file(tmp_path, overwrite):
    target = tmp_path / "a"
    target.write_text("old")
    if overwrite:
        write_text(target, "new", overwrite=True)
    else:
        with pytest.raises(PrivgenError, match="a exists; choose another path, or pass --overwrite"):
            write_text(target, "new")
    assert target.read_text() == ("new" if overwrite else "old")
    assert names(tmp_path) == ["a"]


def test_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    target = tmp_path / "a"
    with pytest.raises(PrivgenError, match="exists"):
        write_while_another_does(target)
    assert target.read_text() == "other"
    assert names(tmp_path) == ["a"]


def test_without_hard_links(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    write_text(tmp_path / "a", "x")
    assert (tmp_path / "a").read_text() == "x"
    with pytest.raises(PrivgenError, match="exists"):
        write_while_another_does(tmp_path / "b")
    assert names(tmp_path) == ["a", "b"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError, PrivgenError])
def test_interrupted(tmp_path, error):
    (tmp_path / "a").write_text("old")
    with pytest.raises(error):
        write_half(tmp_path / "a", error)
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


@pytest.mark.parametrize(
    ("number", "match"),
    [
        (errno.ENOSPC, r"a was not written: the disk is full; free some space and run it again\."),
        (errno.EDQUOT, "quota"),
        (errno.EIO, r"a was not written: .+; choose another path\."),
    ],
)
def test_disk_fails(tmp_path, monkeypatch, number, match):
    """The error is put where the system reports it: when the data is forced out."""

    def fail(descriptor):
        raise OSError(number, os.strerror(number))

    (tmp_path / "a").write_text("old")
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(PrivgenError, match=match):
        write_text(tmp_path / "a", "new", overwrite=True)
    assert (tmp_path / "a").read_text() == "old"
    assert names(tmp_path) == ["a"]


def test_no_room_in_truth(tmp_path, python):
    """A limit on the size of files makes the system itself refuse in the middle of writing."""
    pytest.importorskip("resource")
    code = f"""
import resource
from privgen.io.files import write_bytes
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
write_bytes({str(tmp_path / "a")!r}, bytes(1_000_000))
"""
    result = python("-c", code)
    assert "PrivgenError" in result.stderr
    assert "a was not written: the file is larger than allowed here" in result.stderr
    assert names(tmp_path) == []


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_permissions_from_the_first_moment(tmp_path):
    before = os.umask(0o022)
    try:
        with atomic_write(tmp_path / "secret", mode=0o600):
            (temporary,) = tmp_path.iterdir()
            assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        write_text(tmp_path / "open", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "open").stat().st_mode) == 0o644


def test_follows_a_link(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(PrivgenError, match="exists"):
        write_text(tmp_path / "link", "new")
    write_text(tmp_path / "link", "new", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


@pytest.mark.parametrize(
    ("path", "match"),
    [
        ("folder", "is a folder; name a file in it"),
        ("folder/file/below", "file, not a folder; choose another path"),
        ("x" * 300, "name is too long"),
        pytest.param(
            "/dev/null", "is not a regular file", marks=pytest.mark.skipif(os.name != "posix", reason="POSIX")
        ),
    ],
)
def test_impossible_targets(tmp_path, path, match):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_text("")
    with pytest.raises(PrivgenError, match=match):
        write_text(tmp_path / path, "x", overwrite=True)
    assert names(tmp_path) == ["folder"]


def test_refuse_existing(tmp_path):
    refuse_existing(tmp_path / "a")
    (tmp_path / "a").write_text("")
    refuse_existing(tmp_path / "a", overwrite=True)
    with pytest.raises(PrivgenError):
        refuse_existing(tmp_path / "a")


def test_expands_folders_in_order(tmp_path):
    for name in ("b.PNG", "a.jpg", "c.txt", ".hidden.png", "deep/d.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).write_text("")
    found = iter_image_files([tmp_path / "z.xyz", tmp_path / "in", str(tmp_path / "in" / "a.jpg")])
    assert found == [tmp_path / "z.xyz", tmp_path / "in" / "a.jpg", tmp_path / "in" / "b.PNG"]
    assert all(isinstance(path, Path) for path in found)


def test_folder_without_images(tmp_path):
    with pytest.raises(UsageError, match="holds no images"):
        iter_image_files([tmp_path])
