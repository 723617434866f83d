import json
import os
import stat

import pytest

from privgen.watermark.key import Key


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PRIVGEN_KEYS", str(tmp_path / "keys"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "keys"


def test_new_in_the_folder_of_keys(cli, folder):
    result = cli("key", "new", "alice")
    assert result.exit_code == 0, result.output
    key = Key.load(folder / "alice.key")
    assert key.key_id in result.stdout
    assert str(folder / "alice.key") in result.stdout
    if os.name == "posix":
        assert stat.S_IMODE((folder / "alice.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("where", ["mine.key", "new/mine.key", "there"])
def test_new_in_a_file(cli, tmp_path, where):
    (tmp_path / "there").mkdir()
    record = json.loads(cli("key", "new", "alice", "-o", where, "--json").stdout)
    assert record["name"] == "alice"
    assert record["file"] == ("there/alice.key" if where == "there" else where)
    assert record["key_id"] == Key.load(record["file"]).key_id


def test_new_never_overwrites(cli, folder):
    cli("key", "new", "alice")
    before = (folder / "alice.key").read_bytes()
    result = cli("key", "new", "alice")
    assert result.exit_code == 1
    assert "exists, and keys are not overwritten; choose another path." in result.stderr
    assert (folder / "alice.key").read_bytes() == before


def test_show(cli, folder):
    cli("key", "new", "alice")
    key = Key.load(folder / "alice.key")
    by_name, by_file = cli("key", "show", "alice", "--json"), cli("key", "show", folder / "alice.key", "--json")
    assert json.loads(by_name.stdout) == json.loads(by_file.stdout) == key.public()
    assert set(key.public()) == {"name", "key_id", "fingerprint", "created"}
    assert key.fingerprint in cli("key", "show", "alice").stdout


@pytest.mark.parametrize("arguments", [["show", "alice"], ["show", "alice", "--json"], ["list"], ["list", "--json"]])
def test_no_secret_is_printed(cli, folder, arguments):
    cli("key", "new", "alice")
    key = Key.load(folder / "alice.key")
    result = cli("key", *arguments)
    assert result.exit_code == 0
    bits = "".join(map(str, key.bits()))
    for hidden in (key.secret.hex(), bits, bits[:16], f"{int(bits, 2):012x}"):
        assert hidden not in result.output


def test_list(cli):
    for name in ("bob", "alice"):
        cli("key", "new", name)
    records = json.loads(cli("key", "list", "--json").stdout)
    assert [record["name"] for record in records] == ["alice", "bob"]
    assert "bob.key" in cli("key", "list").stdout


def test_list_of_none(cli):
    result = cli("key", "list")
    assert result.exit_code == 0
    assert "No keys in" in result.stderr
    assert json.loads(cli("key", "list", "--json").stdout) == []


def test_list_survives_a_bad_file(cli, folder):
    cli("key", "new", "alice")
    (folder / "bad.key").write_text("hello")
    result = cli("key", "list", "--json")
    assert result.exit_code == 1
    assert [record["name"] for record in json.loads(result.stdout)] == ["alice"]
    assert "bad.key is not a privgen key" in result.stderr
