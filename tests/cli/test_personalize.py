import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from privgen.attacks.adversaries import ADVERSARIES
from privgen.cli import personalize


def test_choices_are_the_adversaries():
    assert sorted(personalize.ADVERSARIES) == sorted(ADVERSARIES)


FILES = {
    "lora": "pytorch_lora_weights.safetensors",
    "dreambooth": "pipeline",
    "textual-inversion": "learned_embeds.safetensors",
    "prompt-embeds": "prompt_embeds.safetensors",
}


@pytest.mark.parametrize("name", FILES)
def test_a_subject_is_learnt_and_saved(name, cli, model, photos, tmp_path):
    out = tmp_path / "out"
    call = ("personalize", photos, "-o", out, "--adversary", name, "--word", "zq", "--steps", 2, "--model", model)
    result = cli(*call, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["images"], record["steps"], record["seed"]) == (2, 2, 0)
    assert record["learnt"] == str(out / FILES[name])
    assert (out / FILES[name]).exists()
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.width >= 4 * 32
        assert sheet.height >= 3 * 32


def test_nothing_is_overwritten_unasked(cli, model, photos, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "sheet.png").write_bytes(b"precious")
    call = ("personalize", photos, "-o", out, "--word", "zq", "--steps", 1, "-m", model, "--device", "cpu")
    refused = cli(*call)
    assert refused.exit_code == 1
    assert "--overwrite" in refused.stderr
    assert (out / "sheet.png").read_bytes() == b"precious"
    assert cli(*call, "--overwrite").exit_code == 0
    assert (out / "sheet.png").read_bytes() != b"precious"


def test_lora_file_loads(cli, model, photos, tmp_path):
    out = tmp_path / "out"
    assert cli("personalize", photos, "-o", out, "--word", "zq", "--steps", 2, "-m", model).exit_code == 0
    pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
    pipe.load_lora_weights(out)
    changes = [weight for name, weight in pipe.unet.named_parameters() if "lora_B" in name]
    assert changes
    assert any(bool(torch.any(weight != 0)) for weight in changes)


def test_purified_and_mixed_with_clean_images(cli, model, photos, tmp_path):
    call = ("personalize", photos, "--word", "zq", "--steps", 1, "-m", model, "--json", "--adversary", "prompt-embeds")
    result = cli(*call, "-o", tmp_path / "out", "--purify", "jpeg=20", "--clean", photos)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == 4


BAD = {
    "attack": (("--purify", "nothing"), 2, "There is no attack"),
    "prompt": (("--prompt", "a photo"), 2, "does not name the subject"),
    "clean": (("--clean", "nowhere"), 1, "nowhere"),
    "word": (("--word", "{"), 2, "without braces"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls_are_one_sentence(case, cli, model, photos, tmp_path, sentences):
    more, code, message = BAD[case]
    result = cli("personalize", photos, "-o", tmp_path / "out", "--word", "zq", "-m", model, "--steps", 1, *more)
    assert result.exit_code == code, result.output
    assert message in sentences(result)[0]
    assert not (tmp_path / "out").exists()
