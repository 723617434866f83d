import json

import pytest
from PIL import Image

import privgen
from privgen.io.images import load_image
from privgen.models.tokenizer import build_tokenizer


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def generate(cli, marked_model):
    return lambda *words: cli("generate", "a cat", "--steps", "2", "--model", marked_model, *words)


def test_writes_one_image(generate):
    result = generate("-o", "new/cat.png", "--seed", "7", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert record["images"] == [{"file": "new/cat.png", "seed": 7, "status": "done", "objects": []}]
    assert (record["prompt"], record["key"], record["carrier"]) == ("a cat", None, None)
    assert load_image("new/cat.png").pixels.shape == (3, 32, 32)


def test_says_what_made_it(generate):
    assert generate("-o", "cat.png", "--seed", "7", "--negative-prompt", "un été").exit_code == 0
    with Image.open("cat.png") as image:
        assert image.text == {
            "prompt": "a cat", "negative_prompt": "un été", "seed": "7", "model": "tiny", "steps": "2",
            "guidance_scale": "7.5", "privgen": privgen.__version__,
        }  # fmt: skip


def test_for_people(generate):
    lines = generate("-o", "cat.png").stdout.splitlines()
    assert [line.split() for line in lines] == [["file", "seed", "status"], ["cat.png", "0", "done"]]


def test_words_that_the_model_does_not_know_are_named(cli, tmp_path, tiny):
    pipe = tiny.tiny_pipeline()
    pipe.tokenizer = build_tokenizer(["a", "cat", "and", ","])
    pipe.text_encoder = tiny.tiny_text_encoder("sd15", pipe.tokenizer)
    pipe.save_pretrained(tmp_path / "few")
    call = ("generate", "--steps", "1", "--model", str(tmp_path / "few"), "-o")
    result = cli(*call, "zebra.png", "a Cat, and a zebra")
    assert result.exit_code == 0, result.output
    assert result.stderr.splitlines()[-1].startswith("Note: This model was not taught 'zebra', so")
    assert "Note" not in cli(*call, "cat.png", "a cat").stderr


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tiff"])
def test_formats(generate, suffix):
    assert generate("-o", f"cat.{suffix}").exit_code == 0
    assert load_image(f"cat.{suffix}").width == 32


def test_the_same_seed_gives_the_same_image(generate):
    for name, words in (("a", ()), ("b", ()), ("c", ("--seed", "1")), ("d", ("--guidance-scale", "2"))):
        assert generate("-o", f"{name}.png", *words).exit_code == 0
    a, b, c, d = (load_image(f"{name}.png").pixels for name in "abcd")
    assert (a == b).all()
    assert (a != c).any()
    assert (a != d).any()


def test_several_images(generate, tmp_path):
    result = generate("-o", "cats", "--n", "3", "--seed", "5", "--negative-prompt", "dog", "--json")
    assert result.exit_code == 0, result.output
    assert [image["file"] for image in json.loads(result.stdout)["images"]] == [
        f"cats/000{seed}.png" for seed in (5, 6, 7)
    ]
    assert generate("-o", "one.png", "--seed", "6", "--negative-prompt", "dog").exit_code == 0
    assert (load_image("one.png").pixels == load_image("cats/0006.png").pixels).all()


def test_goes_on_where_it_stopped(generate, tmp_path):
    words = ("-o", "cats", "--n", "3")
    assert generate(*words).exit_code == 0
    (tmp_path / "cats" / "0001.png").unlink()
    record = json.loads(generate(*words, "--json").stdout)
    assert [image["status"] for image in record["images"]] == ["skipped", "done", "skipped"]
    assert [image["status"] for image in json.loads(generate(*words, "--json").stdout)["images"]] == ["skipped"] * 3
    other = generate(*words, "--guidance-scale", "2")
    assert other.exit_code == 1
    assert "0000.png exists; choose another path, or pass --overwrite" in other.stderr
    assert generate(*words, "--guidance-scale", "2", "--overwrite").exit_code == 0


def test_refuses_an_existing_file(generate, tmp_path, monkeypatch):
    (tmp_path / "cat.png").write_bytes(b"precious")
    result = generate("-o", "cat.png")
    assert (result.exit_code, result.stderr.count("\n")) == (1, 1)
    assert "cat.png exists" in result.stderr
    assert (tmp_path / "cat.png").read_bytes() == b"precious"
    assert generate("-o", "cat.png", "--overwrite").exit_code == 0


def test_amplified(generate):
    assert generate("-o", "plain.png", "--steps", "4").exit_code == 0
    for name, words in {
        "idle": ("--amplify", "1"),
        "score": ("--amplify", "1.5"),
        "late": ("--amplify", "1.5", "--amplify-window", "0", "600"),
        "gated": ("--amplify", "3", "--amplify-gate", "running_variance"),
        "tangent": ("--amplify-tangent", "1.5"),
    }.items():
        result = generate("-o", f"{name}.png", "--steps", "4", *words)
        assert result.exit_code == 0, result.output
    names = ("plain", "idle", "score", "late", "gated", "tangent")
    pixels = {name: load_image(f"{name}.png").pixels for name in names}
    assert (pixels["plain"] == pixels["idle"]).all()
    others = [pixels[name].numpy().tobytes() for name in pixels if name != "idle"]
    assert len(set(others)) == len(others)
    with Image.open("late.png") as image:
        assert json.loads(image.text["amplification"])["window"] == [0, 600]


def test_rejects_hallucinations(generate, tmp_path):
    assert generate("-o", "all", "--n", "4", "--steps", "6").exit_code == 0
    result = generate("-o", "best", "--n", "4", "--steps", "6", "--reject-hallucinations", "0.5", "--json")
    assert result.exit_code == 0, result.output
    status = {image["file"]: image["status"] for image in json.loads(result.stdout)["images"]}
    assert sorted(status.values()) == ["done", "done", "rejected", "rejected"]
    for file, kept in status.items():
        path = tmp_path / file
        assert path.exists() == (kept == "done")
        if kept == "done":
            assert (load_image(path).pixels == load_image(tmp_path / "all" / path.name).pixels).all()
