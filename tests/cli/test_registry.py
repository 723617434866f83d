"""``privgen registry``, and the commands that use a registry."""

import json

import pytest

from privgen.watermark.key import Key
from privgen.watermark.registry.registry import Registry


@pytest.fixture
def database(cli, workshop):
    """A registry with the keys alice and bob."""
    for words in (("create", "studio.db"), ("add", "studio.db", "alice"), ("add", "studio.db", "bob")):
        assert cli("registry", *words).exit_code == 0
    return workshop / "studio.db"


def test_the_life_of_a_key(cli, database, workshop):
    secret = Key.load(workshop / "keys" / "alice.key").secret.hex()
    said = [cli("registry", "add", "studio.db", "alice", "--derive", "user/carol", "--derive", "user/dave")]
    said += [cli("registry", "add", "studio.db", "erin", "--new"), cli("registry", "rotate", "studio.db", "alice")]
    said += [cli("registry", "revoke", "studio.db", "bob", "--why", "lost")]
    issued = cli("registry", "issue", "studio.db", "alice", "--for", "client 17", "--json")
    payload = json.loads(issued.stdout)["payload"]
    said += [issued, cli("registry", "lookup", "studio.db", "alice", payload)]
    said += [cli("registry", "list", "studio.db"), cli("registry", "check", "studio.db")]
    said += [cli("registry", "export", "studio.db"), cli("registry", "export", "studio.db", "--table", "ids")]
    said += [cli("registry", "export", "studio.db", "--format", "csv", "-o", "keys.csv")]
    assert [result.exit_code for result in said] == [0] * len(said), "".join(result.stderr for result in said)
    assert "client 17" in said[-6].stdout
    listed = json.loads(cli("registry", "list", "studio.db", "--json").stdout)
    assert [(key["name"], key["status"]) for key in listed] == [
        *(("alice", "superseded"), ("bob", "revoked"), ("user.carol", "active"), ("user.dave", "active")),
        *(("erin", "active"), ("alice", "active")),
    ]
    assert not any(secret in result.output for result in said)
    assert secret not in (workshop / "keys.csv").read_text()
    assert cli("registry", "export", "studio.db", "--secrets", "-o", "secrets.jsonl").exit_code == 0
    rows = [json.loads(line) for line in (workshop / "secrets.jsonl").read_text().splitlines()]
    assert rows[0]["secret"] == secret
    assert (workshop / "secrets.jsonl").stat().st_mode & 0o777 == 0o600


def test_marks_lead_back_to_their_records(cli, database, workshop):
    words = ("watermark", "embed", "photos/a.png", "--carrier", "tile", "-o", "marked", "--registry", "studio.db")
    made = [cli(*words, "--key", "alice", "--issued-for", "client 17", "--json") for _ in range(2)]
    first, again = (json.loads(result.stdout)["files"][0] for result in made)
    assert (first["status"], again["status"]) == ("done", "skipped")
    assert first["payload"] == again["payload"]
    cli("registry", "revoke", "studio.db", "alice", "--why", "lost")
    detect = ("watermark", "detect", "marked", "--carrier", "tile", "--registry", "studio.db")
    found = json.loads(cli(*detect, "--json").stdout)
    assert found["records"][0]["issued"]["payload"] == found["payload"] == first["payload"]
    assert found["records"][0]["key"]["status"] == "revoked"
    assert found["n_keys"] == 2
    text = cli(*detect)
    assert text.exit_code == 0
    assert "revoked" in text.stdout
    assert "for client 17, file a.png" in text.stdout
    assert "for client 17" in cli(*detect, "--csv").stdout


def test_generated_images_get_ids_of_their_own(cli, database, workshop):
    words = ("watermark", "generate", "a cat", "--steps", 2, "--n", 2, "-o", "cats", "--registry", "studio.db")
    results = [json.loads(cli(*words, "--key", "bob", "--user", "u-1", "--json").stdout) for _ in range(2)]
    assert [[image["status"] for image in result["images"]] for result in results] == [["done"] * 2, ["skipped"] * 2]
    with Registry.open(database) as registry:
        issued = list(registry.issued())
    assert {(item.issued_for.file, item.issued_for.user, item.issued_for.model) for item in issued} == {
        ("0000.png", "u-1", "mini"),
        ("0001.png", "u-1", "mini"),
    }
    found = cli("watermark", "detect", "cats", "--registry", "studio.db", "--json")
    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert {line["payload"] for line in lines} == {item.payload for item in issued}
    other = cli("watermark", "generate", "a cat", "--steps", 3, "--n", 2, "-o", "cats", "--registry", "studio.db",
        "--key", "bob", "--user", "u-1")  # fmt: skip
    assert other.exit_code == 1  # other images than those that are there
    assert "0000.png exists" in other.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["registry", "create", "studio.db"], 1, "exists, and registries are not overwritten"),
        (["registry", "add", "studio.db", "alice"], 2, "already has a key alice"),
        (["registry", "add", "studio.db", "nobody"], 1, "There is no key file nobody"),
        (["registry", "add", "studio.db", "alice", "--derive", "a b"], 2, "'a b' cannot be a label"),
        (["registry", "add", "studio.db", "x", "--new", "--derive", "a"], 2, "--new or --derive"),
        (["registry", "rotate", "studio.db", "nobody"], 2, "has no key nobody"),
        (["registry", "lookup", "studio.db", "alice", "7"], 1, "has not issued the ID 7"),
        (["registry", "lookup", "studio.db", "nobody", "7"], 2, "has no key nobody"),
        (["registry", "export", "studio.db", "--secrets"], 2, "--secrets needs -o"),
        (["registry", "list", "none.db"], 1, "There is no registry none.db"),
        (["registry", "list", "bad.png"], 1, "bad.png is not a registry"),
        (["watermark", "detect", "photos"], 2, "give --key or --registry"),
        (["watermark", "detect", "photos", "--registry", "none.db"], 1, "There is no registry none.db"),
        (["watermark", "embed", "photos", "--registry", "studio.db", "-o", "out"], 2, "give --key"),
        (["watermark", "embed", "photos", "--key", "alice", "--user", "u", "-o", "out"], 2, "need --registry"),
        (["watermark", "generate", "a cat", "--key", "alice", "--user", "u", "-o", "a.png"], 2, "need --registry"),
    ],
)
def test_wrong_calls(cli, database, sentences, words, code, message):
    result = cli(*words)
    assert result.exit_code == code, result.output
    assert len(sentences(result)) == 1
    assert message in result.stderr


def test_derive_a_key(cli, workshop):
    for words in (("alice", "user/carol"), ("alice", "user/carol", "--name", "carol", "-o", "carol.key")):
        assert cli("key", "derive", *words).exit_code == 0
    expected = Key.load(workshop / "keys" / "alice.key").derive("user/carol")
    assert Key.load(workshop / "keys" / "user.carol.key") == expected
    assert Key.load(workshop / "carol.key").secret == expected.secret
