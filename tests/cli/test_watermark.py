"""``privgen watermark``: what it prints, exit codes, and that a batch survives what goes wrong in it."""

import csv
import json
import os
import re

import numpy as np
import pytest
import torch
from PIL import Image

from privgen import Watermark
from privgen.io.images import LoadedImage, load_image, save_image
from privgen.watermark.key import Key


FIELDS = {"file", "detected", "key", "p_value", "best_match", "matches", "bits", "regions", "keys", "notes", "error"}


@pytest.fixture(autouse=True)
def folder(workshop):
    return workshop


@pytest.fixture
def embed(cli, marked_model):
    return lambda *words: cli("watermark", "embed", "--model", marked_model, "--psnr", "30", *words)


@pytest.fixture
def detect(cli, marked_model):
    return lambda *words: cli("watermark", "detect", "--model", marked_model, *words)


@pytest.fixture
def marked(embed):
    assert embed("photos", "--key", "alice", "-o", "marked").exit_code == 0


def test_embed(embed, folder):
    result = embed("photos", "--key", "keys/alice.key", "-o", "marked", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["key"], record["carrier"], record["output"]) == ("alice", "tile+latent", "marked")
    assert (record["done"], record["skipped"], record["failed"]) == (2, 0, 0)
    for file in record["files"]:
        assert load_image(file["output"]).pixels.shape == load_image(file["source"]).pixels.shape
        assert file["psnr"] == pytest.approx(30, abs=0.01)
        assert file["matches"] >= 41
    assert json.loads(embed("photos", "--key", "alice", "-o", "marked", "--json").stdout)["skipped"] == 2


def test_embed_for_people(embed, sentences):
    result = embed("photos", "bad.png", "--key", "alice", "-o", "marked")
    assert result.exit_code == 1
    (sentence,) = sentences(result)
    assert sentence.startswith("Error: bad.png is not an image in PNG, ")
    assert sentence.endswith("; convert it to PNG or JPEG.")
    rows = {line.split()[0]: line.split()[-1] for line in result.stdout.splitlines()}
    assert (rows["done"], rows["failed"], rows["carrier"]) == ("2", "1", "tile+latent")
    assert "Hint: privgen watermark detect marked --key alice --model " in result.stderr


def test_existing_outputs(embed, folder, sentences):
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


def test_payload(cli, embed, detect):
    words = ("photos/a.png", "--key", "alice", "-o", "marked", "--payload")
    assert embed(*words, 1234).exit_code == 0
    record = json.loads(detect("marked", "--key", "bob", "--key", "alice", "--json").stdout)
    assert (record["key"], record["payload"]) == ("alice", 1234)
    assert [key["payload"] for key in record["keys"]] == [None, 1234]
    assert [region["payload"] for region in record["regions"]] == [1234]
    assert ", payload 1234)" in detect("marked", "--key", "alice").stdout
    assert "the whole image, payload 1234\n" in detect("marked", "photos", "--key", "alice").stdout
    rows = csv.DictReader(detect("marked", "photos/b.png", "--key", "alice", "--csv").stdout.splitlines())
    assert [row["payload"] for row in rows] == ["1234", ""]
    other = embed(*words, 1235)
    assert other.exit_code == 1, "what carries another ID is not skipped"
    assert "exists" in other.stderr


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="the superuser may read everything")
def test_unreadable_key(detect, folder, sentences):
    (folder / "keys" / "alice.key").chmod(0)
    result = detect("photos", "--key", "alice")
    assert (result.exit_code, len(sentences(result))) == (1, 1)
    assert "cannot be read" in result.stderr


def test_detect(detect, marked):
    result = detect("marked", "--key", "alice", "--json")
    assert result.exit_code == 0, result.output
    records = list(map(json.loads, result.stdout.splitlines()))
    assert [record["file"] for record in records] == ["marked/a.png", "marked/b.png"]
    for record in records:
        assert set(record) >= FIELDS
        assert (record["key"], record["detected"], record["error"]) == ("alice", True, None)
        assert len(record["bits"]) == record["n_bits"] == 48
        assert record["p_value"] <= 1e-6
        assert [key["key"] for key in record["keys"]] == ["alice"]


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["marked", "--key", "alice"], 0),
        (["marked", "--key", "bob", "--key", "alice"], 0),
        (["marked", "--key", "keys/bob.key", "keys/alice.key"], 0),
        (["marked", "--key", "keys"], 0),
        (["marked", "--key", "bob"], 3),
        (["photos", "--key", "alice"], 3),
        (["photos", "marked", "--key", "alice"], 3),
        (["marked", "bad.png", "--key", "alice"], 1),
        (["photos", "bad.png", "--key", "alice"], 1),
        (["marked/none.png", "--key", "alice"], 1),
        (["marked", "alice.key", "--key", "alice"], 1),
        (["marked", "--key", "alice", "--test", "binomial", "--device", "cpu"], 0),
    ],
)
@pytest.mark.usefixtures("marked")
def test_exit_codes_of_detect(detect, words, code):
    result = detect(*words)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output


@pytest.mark.usefixtures("marked")
def test_detect_survives_a_bad_file(detect, sentences):
    result = detect("marked/a.png", "bad.png", "marked/b.png", "--key", "alice", "--json")
    assert result.exit_code == 1
    records = list(map(json.loads, result.stdout.splitlines()))
    assert [record["detected"] for record in records] == [True, False, True]
    error = sentences(result)[0].removeprefix("Error: ")
    assert records[1] == {"file": "bad.png", "detected": False, "records": [], "notes": [], "error": error}


@pytest.mark.usefixtures("marked")
def test_detect_for_people(detect):
    one = detect("marked/a.png", "--key", "alice").stdout
    assert re.fullmatch(r"marked/a.png: carries the mark of alice \(4\d of 48 bits, p = .*e-\d+\)\n", one)
    none = detect("photos/a.png", "--key", "alice", "--key", "bob")
    assert re.fullmatch(
        r"photos/a.png: does not carry any of the marks of 2 keys; best is \w+ \(.*for 2 keys\)\n", none.stdout
    )
    assert "An image is marked if p <= 1e-06." in none.stderr
    assert "Hint: --search" in none.stderr
    heads, marked, plain = detect("marked/a.png", "photos/a.png", "--key", "alice").stdout.splitlines()
    assert heads.split() == ["file", "owner", "p", "where"]
    assert re.fullmatch(r"marked/a.png +alice +\S+e-\d+ +the whole image", marked)
    assert re.fullmatch(r"photos/a.png +- +\S+", plain)


@pytest.mark.usefixtures("marked")
def test_detect_as_csv(detect):
    result = detect("marked/a.png", "bad.png", "photos/a.png", "--key", "keys", "--csv")
    marked, bad, plain = csv.DictReader(result.stdout.splitlines())
    assert (marked["file"], marked["owner"], marked["where"]) == ("marked/a.png", "alice", "the whole image")
    assert float(marked["p_value"]) <= 1e-6
    assert (bad["owner"], plain["owner"]) == ("", "")
    assert "not an image" in bad["error"]
    assert float(plain["p_value"]) > 1e-6
    assert plain["best_match"] in ("alice", "bob")


@pytest.mark.usefixtures("marked")
def test_several_keys_are_told_apart(detect):
    record = json.loads(detect("marked/a.png", "--key", "bob", "--key", "alice", "--json").stdout)
    assert record["key"] == "alice"
    assert [(key["key"], key["detected"]) for key in record["keys"]] == [("bob", False), ("alice", True)]
    assert (
        record["p_value"] == record["keys"][1]["p_adjusted"] == 4 * record["keys"][1]["p_value"]
    )  # two keys, two kinds of marks


def test_what_a_user_should_know_is_said(embed, detect, folder):
    with Image.open(folder / "photos" / "a.png") as image:
        image.save(folder / "a.gif", save_all=True, append_images=[image.rotate(180)])
    for result in (embed("a.gif", "--key", "alice", "-o", "marked"), detect("a.gif", "--key", "alice")):
        assert "a.gif: animated: the first frame is used" in result.stderr


@pytest.mark.parametrize(
    ("carrier", "part"),
    [
        ("latent", r"(8[789]|9[0123])% x \d\d% of the marked image, from .*"),
        ("tile", r"a part, (89|9\d)% of the marked image's short side"),
    ],
)
def test_turned_and_cut_out_images_are_found_by_search(cli, folder, carrier, part):
    """With mini; the mark is louder than usual, so that it is found whatever the key."""
    assert (
        cli(
            "watermark", "embed", "photos", "--key", "alice", "--psnr", "32", "--carrier", carrier, "-o", "made"
        ).exit_code
        == 0
    )
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
    cut, turned = (json.loads(line)["pose"] for line in found.stdout.splitlines())
    assert re.fullmatch(part, cut)
    assert re.search(r"turned by -?(9|10|11) degrees", turned)


def save_kinds(folder):
    """A photograph as an RGB, a grey and a 16-bit file; of the last one also the array."""
    with Image.open("photos/a.png") as photo:
        photo = photo.convert("RGB")
    photo.save("colour.png")
    photo.convert("L").save("grey.png")
    fine = np.asarray(photo).astype(np.uint16) * 257 + np.arange(3, dtype=np.uint16)
    save_image(LoadedImage(torch.from_numpy(fine / 65535).float().permute(2, 0, 1), bits=16), "fine.png")
    return fine


def test_files_and_images_in_memory_get_the_same_mark(embed, folder, marked_model):
    fine = save_kinds(folder)
    assert embed("colour.png", "grey.png", "fine.png", "--key", "alice", "-o", "marked").exit_code == 0
    mark, key = Watermark.from_pretrained(marked_model), Key.load("keys/alice.key")
    for name in ("colour", "grey"):
        with Image.open(f"{name}.png") as image, Image.open(f"marked/{name}.png") as marked:
            in_memory = mark.embed(image, key, psnr=30)
            assert in_memory.mode == marked.mode == ("RGB" if name == "colour" else "L")
            assert np.array_equal(in_memory, marked)
            assert not np.array_equal(image, marked)
            assert np.array_equal(mark.embed(f"{name}.png", key, psnr=30), marked)
    marked = load_image("marked/fine.png")
    assert marked.bits == 16
    in_memory = torch.from_numpy(mark.embed(fine, key, psnr=30).astype(np.float64)).permute(2, 0, 1)
    assert torch.equal(in_memory, (marked.pixels.double() * 65535).round())


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


def test_objects_of_generated_images(cli, keys_for_objects, tmp_path):
    alice, bob = keys_for_objects
    words = ("watermark", "generate", "a cat and a pineapple on a blue background", "--steps", "3", "--json")
    owners = ("--object", f"cat={alice}", "--object", f"pineapple={bob}")
    result = cli(*words, *owners, "-o", tmp_path / "two.png")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["key"], record["key_id"], record["carrier"]) == (None, None, "tile")
    [image] = record["images"]
    assert [(item["name"], item["key"]) for item in image["objects"]] == [("cat", "alice"), ("pineapple", "bob")]
    assert all(0 < item["area"] < 0.5 and "mask" not in item for item in image["objects"])
    assert f"detect {tmp_path / 'two.png'} --locate --key {alice} --key {bob}" in result.stderr

    mask = Image.new("L", (128, 128))
    mask.paste(255, (8, 8, 72, 72))
    mask.save(tmp_path / "mask.png")
    more = ("--mask", f"corner={tmp_path / 'mask.png'}", "--key", bob, "-o", tmp_path / "n", "--n", "2")
    record = json.loads(cli(*words, "--object", f"corner={alice}", *more).stdout)
    assert record["key"] == "bob"
    assert [image["objects"][0]["area"] for image in record["images"]] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--object", "dog=ALICE"), 'has no word "dog"'),
        (("--object", "cat"), "write --object NAME=VALUE"),
        (("--mask", "cat=mask.png", "--key", "ALICE"), "--mask needs --object"),
        (("--object", "cat=ALICE", "--carrier", "tile+latent"), "carriers tile, latent, token"),
    ],
)
def test_wrong_objects(cli, keys_for_objects, tmp_path, options, message):
    given = [option.replace("ALICE", str(keys_for_objects[0])) for option in options]
    result = cli("watermark", "generate", "a cat", "--steps", "1", "-o", tmp_path / "x.png", *given)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.fixture
def keys_for_objects(tmp_path):
    return [Key.new(name).save(tmp_path / f"{name}.key") for name in ("alice", "bob")]
