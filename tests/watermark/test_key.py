import dataclasses
import json
import logging
import os
import pickle
import stat
from itertools import pairwise
from pprint import pformat

import pytest

from privgen.errors import PrivgenError, UsageError
from privgen.io.own_files import logger
from privgen.watermark.hkdf import hkdf_sha256
from privgen.watermark.key import Key, Secret, default_path, key_folder, load_key


SECRET = bytes(range(32))

# RFC 5869, appendix A.1 to A.3: secret, salt, info, derived bytes.
RFC_5869 = [
    (
        b"\x0b" * 22,
        bytes(range(13)),
        bytes(range(0xF0, 0xFA)),
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
    ),
    (
        bytes(range(0x50)),
        bytes(range(0x60, 0xB0)),
        bytes(range(0xB0, 0x100)),
        "b11e398dc80327a1c8e7f78c596a49344f012eda2d4efad8a050cc4c19afa97c59045a99cac7827271cb41c65e590e09"
        "da3275600c2f09b8367793a9aca3db71cc30c58179ec3e87c14c01d5c1f3434f1d87",
    ),
    (
        b"\x0b" * 22,
        b"",
        b"",
        "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
    ),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("PRIVGEN_KEYS", str(tmp_path / "keys"))
    return tmp_path / "keys"


@pytest.fixture
def key():
    return Key("alice", Secret(SECRET), "2026-01-02T03:04:05+00:00")


@pytest.mark.parametrize(("secret", "salt", "info", "expected"), RFC_5869)
def test_hkdf_vectors(secret, salt, info, expected):
    derived = bytes.fromhex(expected)
    assert hkdf_sha256(secret, salt=salt, info=info, length=len(derived)) == derived


@pytest.mark.parametrize("length", [0, 8161])
def test_hkdf_limits(length):
    assert len(hkdf_sha256(SECRET, info=b"", length=8160)) == 8160
    with pytest.raises(ValueError, match=r"expected a length of 1\.\.8160"):
        hkdf_sha256(SECRET, info=b"", length=length)


def test_derived_values_never_change(key):
    """Marks in the world depend on them."""
    assert "".join(map(str, key.bits())) == "100100011110111101110110101011000110110110001111"
    assert key.fingerprint == "529f0cb9d9899e3518f4a845c1314efe55b0b65ae56303f2881bd5af0628431d"
    assert key.key_id == key.fingerprint[:16]


def test_bits(key):
    assert len(key.bits()) == 48
    assert set(key.bits()) == {0, 1}
    assert key.bits(13) == key.bits()[:13]
    assert key.bits() == dataclasses.replace(key, name="other", created="").bits()
    with pytest.raises(ValueError, match="at least one bit"):
        key.bits(0)


def test_bits_of_many_keys_are_fair_and_independent():
    rows = [Key("a", Secret(i.to_bytes(32, "big"))).bits() for i in range(2000)]
    means = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    assert all(abs(mean - 0.5) < 0.05 for mean in means)  # 4.5 standard deviations
    agreement = sum(a == b for one, other in pairwise(rows) for a, b in zip(one, other, strict=True))
    assert abs(agreement / (1999 * 48) - 0.5) < 0.01


def test_uses_are_separate(key):
    message = sum(bit << (47 - i) for i, bit in enumerate(key.bits())).to_bytes(6, "big").hex()
    assert message not in key.fingerprint
    assert key.secret.hex()[:12] not in key.fingerprint


def test_new_keys_differ():
    one, other = Key.new("a"), Key.new("a")
    assert one.secret != other.secret
    assert one.key_id != other.key_id
    assert len(one.secret) == 32
    assert one.created.endswith("+00:00")


def test_secret_is_never_shown(key):
    shown = [
        repr(key),
        str(key),
        f"{key} {key.secret} {key.secret!r:>20}",
        "%s %r" % (key.secret, key.secret),  # noqa: UP031
        pformat(key),
        pformat(dataclasses.asdict(key)),
        json.dumps(dataclasses.asdict(key), default=str),
        json.dumps(key.public()),
    ]
    for text in shown:
        assert SECRET.hex() not in text
        assert repr(SECRET)[2:-1] not in text
        assert "\\x0" not in text
    assert repr(key) == "Key(name='alice', created='2026-01-02T03:04:05+00:00')"


def test_save_and_load(tmp_path, key):
    path = key.save(tmp_path / "alice.key")
    assert Key.load(path) == key
    assert json.loads(path.read_text())["version"] == 1
    with pytest.raises(PrivgenError, match=r"alice\.key exists, and keys are not overwritten; choose another path"):
        Key.new("other").save(path)
    assert Key.load(path) == key


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_file_is_private(tmp_path, key):
    before = os.umask(0)
    try:
        path = key.save(tmp_path / "alice.key")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="POSIX permissions")
def test_open_file_is_warned_of_once(tmp_path, key, caplog):
    path = key.save(tmp_path / "alice.key")
    with caplog.at_level(logging.WARNING):
        Key.load(path)
        assert not caplog.records
    path = path.rename(tmp_path / "open.key")
    path.chmod(0o644)
    with caplog.at_level(logging.WARNING):
        assert Key.load(path) == Key.load(path) == key
    (record,) = caplog.records
    assert record.getMessage() == f"Others on this computer may read the key {path}; run: chmod 600 {path}"


def changed(**fields):
    document = {"format": "privgen-key", "version": 1, "name": "a", "created": "", "secret": SECRET.hex()}
    document["fingerprint"] = Key("a", Secret(SECRET)).fingerprint
    return json.dumps({**document, **fields}).encode()


BAD = {
    "empty": (b"", "is not a privgen key; `privgen key new` makes one"),
    "text": (b"hello", "is not a privgen key"),
    "binary": (b"\x89PNG\r\n\x1a\n\xff", "is not a privgen key"),
    "list": (b"[1, 2]", "is not a privgen key"),
    "foreign": (b'{"kty": "oct", "k": "AyM1"}', "is not a privgen key"),
    "deep": (b"[" * 60_000, "is not a privgen key"),
    "large": (changed() + b" " * 70_000 + b"x", "is not a privgen key"),
    "newer": (changed(version=2), "has format version 2, and this privgen reads 1; upgrade privgen"),
    "no version": (changed(version=None), "has format version None"),
    "no secret": (changed(secret=None), "is damaged; restore it from a copy"),
    "short": (changed(secret=SECRET.hex()[:-2]), "is damaged"),
    "not hex": (changed(secret="z" + SECRET.hex()[1:]), "is damaged"),
    "other secret": (changed(secret=SECRET[::-1].hex()), "is damaged"),
    "no fingerprint": (changed(fingerprint=3), "is damaged"),
    "strange fingerprint": (changed(fingerprint="é"), "is damaged"),
    "bad name": (changed(name="../a"), "is damaged"),
    "no name": (changed(name=None), "is damaged"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files(tmp_path, case):
    data, match = BAD[case]
    path = tmp_path / "a.key"
    path.write_bytes(data)
    with pytest.raises(PrivgenError, match=match) as caught:
        Key.load(path)
    message = str(caught.value)
    assert str(path) in message
    assert SECRET.hex()[2:20] not in message
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(PrivgenError, match=r"The key .*nothing\.key does not exist"):
        Key.load(tmp_path / "nothing.key")
    with pytest.raises(PrivgenError, match="is not a file"):
        Key.load(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_unreadable_file(tmp_path, key):
    path = key.save(tmp_path / "alice.key")
    path.chmod(0)
    with pytest.raises(PrivgenError, match="cannot be read: Permission denied; check its permissions"):
        Key.load(path)


def test_unreadable_file_simulated(tmp_path, key, monkeypatch):
    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    path = key.save(tmp_path / "alice.key")
    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(PrivgenError, match="cannot be read: Permission denied; check its permissions"):
        Key.load(path)


@pytest.mark.parametrize("name", ["a", "Alice_2.x-1", "_", "x" * 64])
def test_names(name):
    assert Key.new(name).name == name


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a/b", "é", "a\n", ".", "..", "-o", ".hidden"])
def test_bad_names(name):
    with pytest.raises(UsageError, match="cannot name a key; use 1 to 64 letters"):
        Key.new(name)


@pytest.mark.parametrize("secret", [b"", b"short", SECRET + b"x", "text" * 8])
def test_bad_secrets(secret):
    with pytest.raises(ValueError, match="expected a secret of 32 bytes") as caught:
        Key("a", secret)
    assert "short" not in str(caught.value)


def test_plain_bytes_are_hidden_too():
    assert "\\x" not in repr(Key("a", SECRET).secret)
    assert pickle.loads(pickle.dumps(Key("a", SECRET))).bits() == Key("a", SECRET).bits()


def test_folder_of_keys(monkeypatch, tmp_path):
    monkeypatch.delenv("PRIVGEN_KEYS", raising=False)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert key_folder() == tmp_path / ".config" / "privgen" / "keys"
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    assert key_folder() == tmp_path / "xdg" / "privgen" / "keys"
    monkeypatch.setenv("PRIVGEN_KEYS", "~/own")
    assert key_folder() == tmp_path / "own"


def test_default_path(folder):
    assert default_path("alice") == folder / "alice.key"
    if os.name == "posix":
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    with pytest.raises(UsageError):
        default_path("../alice")


def test_default_path_that_cannot_be(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PRIVGEN_KEYS", str(tmp_path / "file" / "keys"))
    with pytest.raises(PrivgenError, match=r"The folder of keys .* cannot be made: .*; set PRIVGEN_KEYS"):
        default_path("alice")


def test_load_by_name_or_file(folder, tmp_path, key, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key.save(default_path("alice"))
    assert load_key("alice") == key
    assert load_key(folder / "alice.key") == key
    Key.new("alice").save("alice")  # a file of that name wins
    assert load_key("alice") != key
    with pytest.raises(
        PrivgenError, match=r"There is no key file bob, nor a key of that name in .*keys; `privgen key"
    ):
        load_key("bob")
    with pytest.raises(PrivgenError, match="There is no key file"):
        load_key("../bob")


def test_warns_through_the_package_logger():
    assert logger.name.startswith("privgen.")


def test_derived_keys_are_those_of_before(key):
    derived = key.derive("user/alice")
    assert (derived.name, derived.created, derived.key_id) == ("user.alice", key.created, "a970277e4bfa2954")
    assert derived.secret == hkdf_sha256(SECRET, info=b"privgen/watermark/v1/derive/user/alice", length=32)


def test_each_label_has_a_key_of_its_own(key):
    derived = [key, key.derive("a/b"), key.derive("a").derive("b"), key.derive("a"), key.derive("b"), key.derive("A")]
    assert len({some.fingerprint for some in derived}) == len(derived)
    assert key.derive("a", "other").secret == key.derive("a").secret
    # What a label gives must not be what another use of the secret gives.
    assert key.derive("message").bits(256) != key.bits(256)
    assert key.fingerprint not in {key.derive(label).secret.hex() for label in ("fingerprint", "message", "tile")}


@pytest.mark.parametrize("label", ["", "/", "a//b", "a/", "/a", "a b", "ä", "a\n", "x" * 256])
def test_bad_labels(key, label):
    with pytest.raises(UsageError, match="cannot be a label"):
        key.derive(label)
