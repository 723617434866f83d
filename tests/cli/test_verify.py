"""`privgen verify` and `privgen credentials`: what each layer proves, as a publisher and a reader meet it."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from PIL import Image

from privgen import Credentials, Key, Label, Registry, Seal, Watermark
from privgen.io.images import LoadedImage, load_image, save_image
from privgen.provenance.label import AI_MADE, write_label


pytest.importorskip("c2pa", reason="needs the extra c2pa")


@pytest.fixture(autouse=True)
def own(tmp_path, monkeypatch):
    """The folder that commands run in; alice has a key and credentials, bob a key."""
    monkeypatch.chdir(tmp_path)
    for variable, name in {"PRIVGEN_KEYS": "keys", "PRIVGEN_CREDENTIALS": "credentials"}.items():
        monkeypatch.setenv(variable, str(tmp_path / name))
        (tmp_path / name).mkdir()
    Credentials.new("alice").save(tmp_path / "credentials" / "alice.credentials")
    for name in ("alice", "bob"):
        Key.new(name).save(tmp_path / "keys" / f"{name}.key")
    return tmp_path


@pytest.fixture
def published(cli, own):
    """An image that was generated, marked, labelled and signed by alice in one call."""
    words = ["generate", "a cat", "--key", "alice", "--payload", "77", "--sign", "alice", "--label", "eu-ai-act"]
    result = cli(*words, "--steps", "4", "-o", "a.png")
    assert result.exit_code == 0, result.output
    return own / "a.png"


def verified(cli, *words):
    result = cli("verify", *words, "--json")
    return json.loads(result.stdout), result.exit_code


def test_one_call_marks_labels_and_signs(cli, published):
    found, code = verified(cli, published)
    assert code == 0
    assert found["proven"]
    assert (found["credentials"]["state"], found["credentials"]["signer"]) == ("valid", "alice")
    assert found["label"]["ai"]
    assert found["label"]["signed"]
    assert found["label"]["system"] == "mini"
    assert (found["mark"]["key"], found["mark"]["payload"], found["agreement"]) == ("alice", 77, "same")
    text = cli("verify", published).stdout
    assert "The file has not changed since." in text
    assert "carries the mark of alice" in text
    with Image.open(published) as image:
        assert image.text["prompt"] == "a cat"


def test_without_metadata_the_mark_remains(cli, published, own):
    with Image.open(published) as image:
        image.save(own / "a.webp", quality=90)
    found, code = verified(cli, own / "a.webp")
    assert code == 0
    assert found["credentials"]["state"] == "none"
    assert (found["mark"]["key"], found["mark"]["payload"]) == ("alice", 77)
    assert found["label"]["words"] == "none."


def test_the_mark_leads_back_to_the_credentials(cli, own):
    assert cli("registry", "create", "s.db").exit_code == 0
    assert cli("registry", "add", "s.db", "studio", "--new").exit_code == 0
    words = ["--registry", "s.db", "--key", "studio", "--sign", "alice", "--label", "eu-ai-act", "--steps", "4"]
    for _ in range(2):  # a rerun issues no second ID
        result = cli("generate", "a cat", *words, "--issued-for", "client 17", "-o", "a.png")
        assert result.exit_code == 0, result.output
    signed, code = verified(cli, own / "a.png", "--registry", "s.db")
    [record] = signed["records"]
    payload = signed["mark"]["payload"]
    assert code == 0
    assert signed["label"]["identifier"] == f"privgen:{signed['mark']['key_id']}:{payload}"
    assert (record["payload"], record["issued"]["note"]) == (payload, "client 17")
    assert signed["recovered"] == []  # its own credentials hold
    with Image.open(own / "a.png") as image:
        image.save(own / "a.webp", quality=90)
    stripped = cli("credentials", "recover", "a.webp", "--registry", "s.db", "-o", "a.c2pa", "--json")
    assert stripped.exit_code == 0, stripped.output
    [recovered] = json.loads(stripped.stdout)["recovered"]
    assert (recovered["state"], recovered["signer"], recovered["source_type"]) == ("recovered", "alice", AI_MADE)
    assert recovered["bindings"][0]["payload"] == payload
    assert (own / "a.c2pa").stat().st_size > 1000
    Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).save(own / "b.png")
    assert cli("credentials", "recover", "b.png", "--registry", "s.db").exit_code == 3


def test_a_forged_label_is_told_from_a_signed_one(cli, own):
    image = load_image(published_photo(own))
    Image.new("RGB", (64, 64), "red").save(own / "a.png")
    from dataclasses import replace

    from privgen.io.images import save_image

    plain = load_image(own / "a.png")
    forged = replace(plain.metadata, xmp=write_label(None, Label(AI_MADE, provider="Acme")))
    save_image(replace(plain, metadata=forged), own / "forged.png")
    found, code = verified(cli, own / "forged.png")
    assert code == 3
    assert found["label"]["ai"]
    assert not found["label"]["signed"]
    assert "anybody could have written it" in found["label"]["words"]
    assert found["together"] == "nothing proves where it comes from."
    assert image.metadata.xmp is not None


def published_photo(own):
    """A photograph that `Watermark.publish` has marked and signed."""
    Image.effect_mandelbrot((160, 120), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(own / "photo.jpg", quality=95)
    seal = Seal(Credentials.load("alice"), Label(creator="Ada"))
    mark = Watermark.from_pretrained("mini")
    return mark.publish(own / "photo.jpg", own / "published.jpg", Key.load(own / "keys" / "alice.key"), seal=seal)


def test_a_changed_pixel_breaks_the_signature_and_not_the_mark(cli, own):
    path = published_photo(own)
    data = bytearray(path.read_bytes())
    data[-300] ^= 1  # of the last rows of the picture
    path.write_bytes(data)
    found, code = verified(cli, path)
    assert code == 3
    assert found["credentials"]["state"] == "changed"
    assert "the file changed after it was signed" in found["credentials"]["words"]
    assert found["mark"]["detected"]
    assert found["together"] == "the file is not as it was signed; the mark alone shows the origin."


def test_credentials_of_another_mark_are_not_relied_on(own):
    """Whoever signs a copy of a marked image, and names a mark of his own, is contradicted by the mark."""
    from privgen.watermark.read.detection import DetectSpec

    alice, bob = (Key.load(own / "keys" / f"{name}.key") for name in ("alice", "bob"))
    mark = Watermark.from_pretrained("mini")
    Image.effect_mandelbrot((160, 120), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(own / "photo.png")
    marked = mark.embed(own / "photo.png", alice, carrier="tile")
    seal = Seal(Credentials.new("bob"), Label(AI_MADE))
    path = mark.publish(marked, own / "stolen.png", bob, seal=seal, marked=True)
    found = mark.verify(path, [alice, bob], spec=DetectSpec(carrier="tile"))
    assert found.credentials.state == "valid"
    assert (found.detection.key, found.agreement, found.proven) == ("alice", "other", False)
    # Marking it as well does not help him: alice's mark is there, and he does not name it.
    twice = mark.publish(marked, own / "twice.png", bob, seal=seal)
    found = mark.verify(twice, [alice, bob], spec=DetectSpec(carrier="tile"))
    assert found.found == {alice.key_id, bob.key_id}
    assert (found.agreement, found.proven) == ("unnamed", False)
    assert "whose it is, is open" in str(found)


def test_marks_of_revoked_keys_show_nothing(own):
    """Whoever has stolen a key can write its mark anywhere."""
    mark = Watermark.from_pretrained("mini")
    Image.effect_mandelbrot((160, 120), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(own / "photo.png")
    with Registry.create(own / "s.db") as registry:
        studio = Key.new("studio")
        registry.add(studio)
        registry.derive("studio", "user/carol")
        mark.embed(own / "photo.png", studio.derive("user/carol"), carrier="tile").save(own / "forged.png")
        assert mark.verify(own / "forged.png", registry).proven
        registry.revoke("studio", "stolen")  # and with it what is derived from it
        found = mark.verify(own / "forged.png", registry)
    assert (len(found.found), found.found, found.proven) == (1, found.revoked, False)
    assert "shows nothing" in str(found)


def test_marks_of_objects_are_looked_for_on_demand(cli, own):
    Image.effect_mandelbrot((256, 192), (-2, -1.5, 1, 1.5), 50).convert("RGB").save(own / "photo.png")
    mask = Image.new("L", (256, 192))
    mask.paste(255, (0, 0, 160, 192))
    mask.save(own / "mask.png")
    words = ["--object", "hill=alice", "--mask", "hill=mask.png", "--sign", "alice", "-o", "out.png"]
    made = cli("watermark", "embed", "photo.png", *words)
    assert made.exit_code == 0, made.output
    assert "--locate looks for them" in cli("verify", "out.png").stdout
    found, code = verified(cli, "out.png", "--locate")
    assert (code, found["agreement"], found["mark"]["key"]) == (0, "same", "alice")
    assert found["credentials"]["bindings"][0]["box"] == [0, 0, 0.625, 1]


def test_published_photographs_of_16_bits_keep_them(own):
    deep = torch.randint(20_000, 40_000, (3, 160, 160), generator=torch.Generator().manual_seed(0)).to(torch.uint16)
    save_image(LoadedImage(deep, bits=16), own / "deep.png")
    mark = Watermark.from_pretrained("mini")
    path = mark.publish(own / "deep.png", own / "out.png", Key.new("alice"), seal=Seal(label=Label(credit="Studio")))
    stored = load_image(path).stored.int()
    assert (stored % 257 != 0).any()  # else they are 8 bits, written as 16


def test_embed_signs_photographs_and_keeps_their_credentials(cli, own):
    source = published_photo(own)
    words = ["--carrier", "tile", "--format", "same", "--sign", "alice", "--say", "credit=Studio"]
    result = cli("watermark", "embed", source, "--key", "bob", *words, "-o", "out", "--json")
    assert result.exit_code == 0, result.output
    assert "no longer hold" not in result.stderr
    found, code = verified(cli, own / "out" / "published.jpg")
    assert code == 0
    [parent] = found["credentials"]["parents"]
    assert (parent["state"], parent["signer"]) == ("valid", "alice")
    assert found["agreement"] == "same"  # bob's mark is named by the credentials, and alice's by those of the parent
    assert found["credentials"]["actions"] == ["c2pa.opened", "c2pa.edited", "c2pa.watermarked.bound"]
    assert (found["label"]["creator"], found["label"]["credit"]) == ("Ada", "Studio")
    assert {match["key"] for match in found["mark"]["keys"] if match["detected"]} == {"alice", "bob"}
    again = cli("watermark", "embed", source, "--key", "bob", *words, "-o", "out", "--json")
    assert json.loads(again.stdout)["skipped"] == 1  # signing anew would change the file


def test_credentials_command(cli, own):
    made = cli("credentials", "new", "bob", "--days", "30", "--json")
    assert made.exit_code == 0, made.output
    assert "untrusted" in made.stderr
    record = json.loads(made.stdout)
    assert "PRIVATE" not in made.output
    if os.name == "posix":
        assert stat.S_IMODE(Path(record["file"]).stat().st_mode) == 0o600
    assert [item["name"] for item in json.loads(cli("credentials", "list", "--json").stdout)] == ["alice", "bob"]
    assert cli("credentials", "new", "bob").exit_code == 1
    assert cli("credentials", "show", "bob", "--root").stdout.startswith("-----BEGIN CERTIFICATE")


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["verify"], 2, "IMAGE_OR_FOLDER"),
        (["verify", "missing.png"], 1, "missing.png"),
        (["verify", "a.png", "--trust", "a.png"], 1, "--trust"),
        (["credentials", "show", "nobody"], 1, "no credentials nobody"),
        (["credentials", "new", "../x"], 2, "cannot name credentials"),
        (["credentials", "add", "x", "--certificates", "a.png", "--private-key", "a.png"], 1, "a.png"),
        (["generate", "a cat", "--sign", "nobody", "-o", "b.png"], 1, "no credentials nobody"),
        (["generate", "a cat", "--label", "sb-942", "-o", "b.png"], 2, "provider"),
        (["generate", "a cat", "--say", "mood=fine", "-o", "b.png"], 2, "--say mood"),
        (["generate", "a cat", "--payload", "1", "-o", "b.png"], 2, "--payload needs --key"),
        (["generate", "a cat", "--sign", "alice", "--steps", "1", "-o", "b.bmp"], 1, "BMP"),
    ],
)
def test_wrong_calls_get_one_sentence(cli, own, words, code, message):
    Image.effect_mandelbrot((64, 64), (-2, -1.5, 1, 1.5), 50).save(own / "a.png")
    result = cli(*words)
    assert (result.exit_code, message in result.stderr) == (code, True), result.output
    assert "Traceback" not in result.stderr
    assert not (own / "b.png").exists()
