"""``privgen watermark``: what it prints, exit codes, and that a batch survives what goes wrong in it."""

import json
import os
import re

import pytest
from PIL import Image

from privgen.io.images import load_image
from privgen.watermark.key import Key


FIELDS = {"file", "key", "matches", "bits", "p_value", "p_adjusted", "detected", "keys", "error"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, photo_files):
    """A folder of one's own with two photos, an image that is none, and two keys."""
    monkeypatch.setenv("PRIVGEN_KEYS", str(tmp_path / "keys"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, path in zip(("a.png", "b.png"), photo_files[3:], strict=False):
        with Image.open(path) as image:
            image.save(tmp_path / "photos" / name)
    (tmp_path / "bad.png").write_bytes(b"not an image")
    for name in ("alice", "bob"):
        Key.new(name).save(tmp_path / "keys" / f"{name}.key")
    return tmp_path


@pytest.fixture
def embed(cli, marked_model):
    return lambda *words: cli("watermark", "embed", "--model", marked_model, "--psnr", "30", *words)


@pytest.fixture
def detect(cli, marked_model):
    return lambda *words: cli("watermark", "detect", "--model", marked_model, *words)


@pytest.fixture
def marked(embed):
    assert embed("photos", "--key", "alice", "-o", "marked").exit_code == 0


def sentences(result):
    return [line for line in result.stderr.splitlines() if line.startswith("Error: ")]


def test_embed(embed, folder):
    result = embed("photos", "--key", "keys/alice.key", "-o", "marked", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["key"], record["carrier"], record["output"]) == ("alice", "latent", "marked")
    assert (record["done"], record["skipped"], record["failed"]) == (2, 0, 0)
    for file in record["files"]:
        assert load_image(file["output"]).pixels.shape == load_image(file["source"]).pixels.shape
        assert file["psnr_db"] == pytest.approx(30, abs=0.01)
        assert file["matches"] >= 41
    assert json.loads(embed("photos", "--key", "alice", "-o", "marked", "--json").stdout)["skipped"] == 2


def test_embed_for_people(embed):
    result = embed("photos", "bad.png", "--key", "alice", "-o", "marked")
    assert result.exit_code == 1
    assert sentences(result) == ["Error: bad.png is not an image in PNG, JPEG, WebP, TIFF, BMP, GIF, AVIF, JPEG 2000 or PPM; convert it to PNG or JPEG."]  # fmt: skip
    rows = {line.split()[0]: line.split()[-1] for line in result.stdout.splitlines()}
    assert (rows["done"], rows["failed"], rows["carrier"]) == ("2", "1", "latent")
    assert "Hint: privgen watermark detect marked --key alice --model " in result.stderr


def test_existing_outputs(embed, folder):
    (folder / "marked").mkdir()
    (folder / "marked" / "a.png").write_bytes(b"precious")
    result = embed("photos", "--key", "alice", "-o", "marked")
    assert result.exit_code == 1
    assert len(sentences(result)) == 1
    assert "marked/a.png exists; choose another path, or pass --overwrite" in sentences(result)[0]
    assert (folder / "marked" / "a.png").read_bytes() == b"precious"
    assert (folder / "marked" / "b.png").exists()
    assert embed("photos", "--key", "alice", "-o", "marked", "--overwrite").exit_code == 0
    assert load_image(folder / "marked" / "a.png").width == load_image(folder / "photos" / "a.png").width


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["photos", "--key", "alice", "-o", "photos"], "inputs come from"),
        (["photos", "--key", "alice", "-o", "bad.png"], "bad.png is a file"),
        (["photos/a.png", "--key", "alice", "-o", "new.png"], "new.png looks like a file"),
        (["keys", "--key", "alice", "-o", "marked"], "holds no images"),
        (["photos", "--key", "alice"], "--output"),
        (["photos", "-o", "marked"], "--key"),
        (["--key", "alice", "-o", "marked"], "IMAGE_OR_FOLDER"),
        (["photos", "--key", "alice", "-o", "marked", "--carrier", "pigeon"], "token"),
        (["photos", "--key", "alice", "-o", "marked", "--psnr", "5"], "20"),
    ],
)
def test_embed_wrongly_used(embed, folder, words, said):
    before = sorted(folder.rglob("*"))
    result = embed(*words)
    assert result.exit_code == 2
    assert said in result.stderr
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize("command", ["embed", "detect", "generate"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "There is no key file mine.key"),
        (b"hello", "mine.key is not a privgen key"),
        (b"\xff\xfe\x00", "mine.key is not a privgen key"),
        (b"{}", "mine.key is not a privgen key"),
        (b'{"format": "privgen-key", "version": 9}', "format version 9"),
        (b'{"format": "privgen-key", "version": 1}', "mine.key is damaged"),
    ],
)
def test_bad_keys(cli, folder, marked_model, command, content, said):
    if content is not None:
        (folder / "mine.key").write_bytes(content)
    words = {"embed": ["photos", "-o", "new"], "detect": ["photos"], "generate": ["a cat", "-o", "new.png"]}[command]
    result = cli("watermark", command, *words, "--key", "mine.key", "--model", marked_model)
    assert result.exit_code == 1
    assert len(sentences(result)) == 1
    assert said in result.stderr
    assert not (folder / "new").exists()
    assert not (folder / "new.png").exists()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_unreadable_key(detect, folder):
    (folder / "keys" / "alice.key").chmod(0)
    result = detect("photos", "--key", "alice")
    assert (result.exit_code, len(sentences(result))) == (1, 1)
    assert "cannot be read" in result.stderr


def test_detect(detect, marked):
    result = detect("marked", "--key", "alice", "--json")
    assert result.exit_code == 0, result.output
    records = json.loads(result.stdout)
    assert [record["file"] for record in records] == ["marked/a.png", "marked/b.png"]
    for record in records:
        assert set(record) >= FIELDS
        assert (record["key"], record["detected"], record["error"]) == ("alice", True, None)
        assert len(record["bits"]) == record["n_bits"] == 48
        assert record["p_value"] == record["p_adjusted"] <= 1e-6
        assert [key["key"] for key in record["keys"]] == ["alice"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["marked", "--key", "alice"], 0),
        (["marked", "--key", "bob", "--key", "alice"], 0),
        (["marked", "--key", "keys/bob.key", "keys/alice.key"], 0),
        (["marked", "--key", "bob"], 3),
        (["photos", "--key", "alice"], 3),
        (["photos", "marked", "--key", "alice"], 3),
        (["marked", "bad.png", "--key", "alice"], 1),
        (["photos", "bad.png", "--key", "alice"], 1),
        (["marked/none.png", "--key", "alice"], 1),
        (["marked", "--key", "alice", "--fpr", "1e-15"], 2),
        (["marked", "--key", "alice", "--fpr", "0"], 2),
        (["marked"], 2),
        (["alice.key", "--key", "alice"], 1),
        (["keys/alice.key", "--key", "alice"], 2),
        (["marked", "--key", "alice", "--seed", "1", "--device", "cpu", "--dtype", "bfloat16"], 0),
        (["marked", "--key", "alice", "--device", "abacus"], 2),
    ],
)
@pytest.mark.usefixtures("marked")
def test_exit_codes_of_detect(detect, words, code):
    result = detect(*words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output


@pytest.mark.usefixtures("marked")
def test_detect_survives_a_bad_file(detect):
    result = detect("marked/a.png", "bad.png", "marked/b.png", "--key", "alice", "--json")
    assert result.exit_code == 1
    records = json.loads(result.stdout)
    assert [record["detected"] for record in records] == [True, False, True]
    assert records[1] == {
        **dict.fromkeys(records[0]), "file": "bad.png", "detected": False, "keys": [], "notes": [],
        "error": sentences(result)[0].removeprefix("Error: "),
    }  # fmt: skip


@pytest.mark.usefixtures("marked")
def test_detect_for_people(detect):
    one = detect("marked/a.png", "photos/a.png", "--key", "alice").stdout.splitlines()
    assert one[0].startswith("marked/a.png: carries the mark of key alice: ")
    assert " of 48 bits, p = " in one[0]
    assert one[1].startswith("photos/a.png: does not carry the mark of key alice: ")
    many = detect("marked/a.png", "photos/a.png", "--key", "alice", "--key", "bob")
    marked, plain = many.stdout.splitlines()
    assert marked.startswith("marked/a.png: carries the mark of key alice: ")
    assert marked.endswith(" for 2 keys")
    assert plain.startswith("photos/a.png: does not carry a mark of the 2 keys; best is ")
    assert "Marked means p <= 1e-06." in many.stderr


@pytest.mark.usefixtures("marked")
def test_several_keys_are_told_apart(detect):
    (record,) = json.loads(detect("marked/a.png", "--key", "bob", "--key", "alice", "--json").stdout)
    assert record["key"] == "alice"
    assert [(key["key"], key["detected"]) for key in record["keys"]] == [("bob", False), ("alice", True)]
    assert record["p_adjusted"] == 2 * record["p_value"]


def test_what_a_user_should_know_is_said(embed, detect, folder):
    with Image.open(folder / "photos" / "a.png") as image:
        image.save(folder / "a.gif", save_all=True, append_images=[image.rotate(180)])
    for result in (embed("a.gif", "--key", "alice", "-o", "marked"), detect("a.gif", "--key", "alice")):
        assert "a.gif: animated: the first frame is used" in result.stderr


def test_turned_and_cut_out_images_are_found_by_search(cli, folder):
    """With mini; the mark is louder than usual, so that it is found whatever the key."""
    assert cli("watermark", "embed", "photos", "--key", "alice", "--psnr", "32", "-o", "made").exit_code == 0
    (folder / "moved").mkdir()
    with Image.open(folder / "made" / "a.png") as image:
        width, height = image.size
        image.crop((0, height // 20, width * 9 // 10, height * 19 // 20)).save(folder / "moved" / "cut.png")
    with Image.open(folder / "made" / "b.png") as image:
        image.rotate(10, Image.Resampling.BILINEAR).save(folder / "moved" / "turned.png")
    detect = ("watermark", "detect", "moved", "--key", "alice", "--json")
    assert cli(*detect).exit_code == 3
    found = cli(*detect, "--search")
    assert found.exit_code == 0, found.output
    cut, turned = (file["pose"] for file in json.loads(found.stdout))
    assert re.fullmatch(r"(8[789]|9[0123])% x \d\d% of the marked image, from .*", cut)
    assert re.search(r"turned by -?(9|10|11) degrees", turned)


def test_full_disk(python, folder, marked_model):
    pytest.importorskip("resource")
    words = ["watermark", "embed", "photos", "--key", "alice", "-o", "marked", "--model", str(marked_model)]
    code = f"""
import resource
from privgen.cli.main import main
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
main({words!r}, prog_name="privgen")
"""
    result = python("-c", code, cwd=folder)
    assert result.returncode == 1
    errors = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 2
    assert "marked/a.png was not written: the file is larger than allowed" in errors[0]
    assert list((folder / "marked").iterdir()) == []


@pytest.mark.parametrize("carrier", ["token", "latent"])
def test_generate(cli, folder, marked_model, root, carrier):
    # A tiny random model hardly listens to text: what a token changes is lost in 8 bits for one key in eight.
    model = root / "privgen" / "models" / "mini" if carrier == "token" else marked_model
    words = ["a cat", "--key", "alice", "--carrier", carrier, "--steps", "4", "--model", model, "--tau", "500"]
    result = cli("watermark", "generate", *words, "-o", "cat.png", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["key"], record["carrier"]) == ("alice", carrier)
    assert [image["file"] for image in record["images"]] == ["cat.png"]
    plain = cli("generate", "a cat", "--steps", "4", "--model", model, "-o", "plain.png")
    assert plain.exit_code == 0, plain.output
    difference = (load_image("cat.png").pixels - load_image("plain.png").pixels).abs()
    assert 0 < difference.mean() < 0.3
    assert "Hint: privgen watermark detect cat.png --key alice --model " in result.stderr


def test_generate_writes_nothing_of_the_key(cli, folder, marked_model):
    words = ["a cat", "--key", "alice", "--steps", "2", "--model", marked_model, "-o", "cat.png", "--tau", "600"]
    assert cli("watermark", "generate", *words).exit_code == 0
    with Image.open("cat.png") as image:
        assert set(image.text) == {"prompt", "seed", "model", "steps", "guidance_scale", "privgen"}
    key = Key.load(folder / "keys" / "alice.key")
    content = (folder / "cat.png").read_bytes()
    for hidden in ("alice", key.key_id, key.secret.hex(), "".join(map(str, key.bits()))):
        assert hidden.encode() not in content
