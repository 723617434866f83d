import os
import sqlite3
import stat

import pytest

from privgen.errors import PrivgenError, UsageError
from privgen.watermark.key import Key
from privgen.watermark.registry import database
from privgen.watermark.registry.registry import Registry
from privgen.watermark.registry.values import IssuedFor


@pytest.fixture
def registry(tmp_path):
    with Registry.create(tmp_path / "keys.db") as registry:
        yield registry


def test_keys_come_back(registry):
    alice, bob = Key.new("alice"), Key.new("bob")
    for key in (alice, bob):
        registry.add(key)
    derived = registry.derive("alice", "user/carol")
    assert [entry.name for entry in registry.list()] == ["alice", "bob", "user.carol"]
    assert (derived.parent, derived.label) == (alice.key_id, "user/carol")
    with Registry.open(registry.path, write=False) as reader:
        assert reader.keys() == (alice, bob, alice.derive("user/carol"))
        assert reader.key("bob") == reader.key(bob.key_id) == bob
        assert reader.find(bob.key_id) == reader.find("bob") == registry.list()[1]
        assert reader.find("nobody") is None


def test_only_the_owner_may_read(registry):
    registry.add(Key.new("alice"))
    if os.name == "posix":
        for path in registry.path.parent.glob("keys.db*"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


def test_derived_keys_have_no_secret_in_the_file(registry):
    key = Key.new("studio")
    registry.add(key)
    registry.derive("studio", "user/carol")
    registry.close()
    content = registry.path.read_bytes()
    assert bytes(key.secret) in content
    assert bytes(key.derive("user/carol").secret) not in content


def test_rotation_and_revocation(registry):
    old = registry.add(Key.new("alice"))
    registry.derive("alice", "user/carol")
    new = registry.rotate("alice")
    assert new.name == "alice"
    assert new.key_id != old.key_id
    assert registry.find("alice") == new
    before = registry.find(old.key_id)
    assert (before.status, before.successor) == ("superseded", new.key_id)
    registry.revoke("alice", "lost a disk")
    assert (registry.find("alice").status, registry.find("alice").why) == ("revoked", "lost a disk")
    every = registry.keys()
    assert {key.key_id for key in every} == {entry.key_id for entry in registry.list()}
    for call in (registry.rotate, registry.issue):
        with pytest.raises(UsageError, match="revoked"):
            call("alice")
    with pytest.raises(UsageError, match="superseded"):
        registry.issue(old.key_id)
    registry.add(Key.new("alice"))  # the name is free again
    assert [entry.name for entry in registry.list("active")] == ["user.carol", "alice"]


def test_ids_lead_back(registry):
    registry.add(Key.new("alice"))
    what = IssuedFor("client 17", file="a.png", user="u1", model="mini", source_sha256="0" * 64)
    issued = registry.issue("alice", what)
    assert registry.lookup(issued.key_id, issued.payload) == issued
    assert str(issued).endswith("for client 17, user u1, file a.png, model mini")
    registry.record_output(issued, "f" * 64)
    assert [found.output_sha256 for found in registry.with_output("f" * 64)] == ["f" * 64]
    assert registry.lookup(issued.key_id, issued.payload ^ 1) is None
    assert registry.lookup("0" * 16, issued.payload) is None
    with pytest.raises(UsageError, match="issued with this key before"):
        registry.issue("alice", payload=issued.payload)
    with pytest.raises(UsageError, match="whole number"):
        registry.issue("alice", payload=2**32)


def test_the_same_request_gets_the_same_id(registry):
    registry.add(Key.new("alice"))
    registry.add(Key.new("bob"))
    first = registry.issue("alice", request="a.png")
    assert registry.issue("alice", request="a.png") == first
    with pytest.raises(UsageError, match=f"got the ID {first.payload} before"):
        registry.issue("alice", request="a.png", payload=first.payload ^ 1)
    assert registry.issue("alice", request="b.png").payload != first.payload
    assert registry.issue("bob", request="a.png").key_id != first.key_id
    assert registry.issue("alice").payload != registry.issue("alice").payload
    assert len(list(registry.issued("alice"))) == 4


def test_all_ids_or_none(registry):
    registry.add(Key.new("alice"))
    requests = [(IssuedFor(file=f"{i}.png"), f"{i}") for i in range(1000)]
    issued = registry.issue_all("alice", requests)
    assert len({item.payload for item in issued}) == 1000
    with pytest.raises(UsageError):
        registry.issue_all("alice", [(IssuedFor(), "new"), (IssuedFor(), "newer")], payload=issued[0].payload)
    assert registry.check() == (1, 1000)


def not_a_database(path):
    path.write_bytes(b"hello" * 1000)


def other_database(path):
    sqlite3.connect(path).execute("CREATE TABLE t (x)")


def newer(path):
    Registry.create(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 99")


def torn_page(path):
    with Registry.create(path) as registry:
        registry.add(Key.new("alice"))
    data = bytearray(path.read_bytes())
    data[4096:-4096] = b"\xa5" * len(data[4096:-4096])
    path.write_bytes(data)


def changed_secret(path):
    with Registry.create(path) as registry:
        registry.add(Key.new("alice"))
    connection = sqlite3.connect(path)
    connection.execute("UPDATE keys SET secret = zeroblob(32)")
    connection.commit()
    connection.close()


def locked(path):
    Registry.create(path).close()
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN IMMEDIATE")
    return connection  # open until the test ends


BAD = {
    "missing": (lambda path: None, "There is no registry"),
    "folder": (lambda path: path.mkdir(), "is not a file"),
    "empty": (lambda path: path.touch(), "is not a registry"),
    "not a database": (not_a_database, "is not a registry"),
    "another database": (other_database, "is not a registry"),
    "newer": (newer, "has version 99, and this privgen reads 1; upgrade privgen"),
    "damaged page": (torn_page, "is damaged; restore it from a copy"),
    "damaged secret": (changed_secret, "is damaged; restore the registry from a copy"),
    "locked": (locked, "is locked by another program"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_registries(name, tmp_path, monkeypatch):
    make, message = BAD[name]
    monkeypatch.setattr(database, "WAIT_SECONDS", 0.05)
    path = tmp_path / "bad.db"
    held = make(path)

    def use():
        with Registry.open(path) as registry:
            registry.keys()
            registry.add(Key.new("bob"))

    with pytest.raises(PrivgenError, match=message):
        use()
    del held


def test_existing_files_are_not_overwritten(registry):
    with pytest.raises(PrivgenError, match="exists, and registries are not overwritten"):
        Registry.create(registry.path)


def test_what_others_may_read_is_said(registry, caplog):
    registry.path.chmod(0o644)
    Registry.open(registry.path).close()
    if os.name == "posix":
        assert "chmod 600" in caplog.text
