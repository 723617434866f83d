import json
import re

import pytest
from click.testing import CliRunner
from diffusers import AutoencoderKL, StableDiffusionPipeline

from privgen.metrics.scenes import load_classifier
from privgen.models.extractor import Extractor
from privgen.models.mappers import TokenMapper
from privgen.training.mini.classifier import ClassifierTask
from privgen.training.watermark.token_language import TokenLanguageRecipe


SMALL = ("--set", "classifier.channels=[8]", "--set", "loop.batch_size=2", "--set", "loop.log_every=1")


@pytest.fixture
def classifier(cli, tmp_path):
    """Trains a small classifier in `tmp_path / "run"`."""
    return lambda *args: cli(
        "train", "classifier", "-o", tmp_path / "run", "--steps", 2, "--device", "cpu", *SMALL, *args
    )


def test_a_run(classifier, tmp_path):
    result = classifier("--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert (said["kind"], said["step"], said["steps"]) == ("classifier", 2, 2)
    assert said["model"] == str(tmp_path / "run" / "model")
    assert load_classifier(tmp_path / "run" / "model" / "classifier").config.channels in ([8], (8,))
    left = {path.name for path in (tmp_path / "run").iterdir()}
    assert left >= {"recipe.toml", "checkpoint", "loss.jsonl", "loss.png", "previews", "model"}
    assert len((tmp_path / "run" / "loss.jsonl").read_text().splitlines()) == 2
    # In a log there are lines, and no bar that is drawn again and again.
    first, last = result.stderr.splitlines()
    assert first == "step 0 of 2, 00:00 so far"
    assert re.fullmatch(r"step 2 of 2, \d\d:\d\d so far, loss=\d+\.\d+", last)


def test_an_interrupted_run_goes_on(classifier, tmp_path):
    assert json.loads(classifier("--stop-at", 1, "--json").stdout)["step"] == 1
    assert json.loads(classifier("--json").stdout)["step"] == 2
    assert len((tmp_path / "run" / "loss.jsonl").read_text().splitlines()) == 2


def test_a_run_goes_on_by_its_own_recipe(classifier, cli, tmp_path):
    assert classifier("--stop-at", 1).exit_code == 0
    run = tmp_path / "run"
    result = cli("train", "classifier", "-o", run, "--recipe", run / "recipe.toml", "--device", "cpu")
    assert result.exit_code == 0, result.output
    assert "step   2" in result.stdout


def test_another_recipe_needs_another_folder(classifier, tmp_path):
    assert classifier("--stop-at", 1).exit_code == 0
    result = classifier("--set", "classifier.noise=0.5", "--set", "loop.log_every=5")
    assert result.exit_code == 2
    assert "run holds a run of another recipe (classifier.noise: 0.04 there, 0.5 now)" in result.stderr


def test_an_autoencoder(cli, tmp_path):
    tiny = ("channels=[8,8,8,8]", "crop=16", "latent_channels=2", "photo_fraction=0")
    changes = [word for change in tiny for word in ("--set", f"autoencoder.{change}")]
    result = cli(
        "train", "autoencoder", "-o", tmp_path, "--steps", 2, "--device", "cpu", "--set", "loop.batch_size=2", *changes
    )
    assert result.exit_code == 0, result.output
    assert AutoencoderKL.from_pretrained(tmp_path / "model" / "vae").config.latent_channels == 2


SETTINGS = {
    "autoencoder": ("size=64", "channels=[8,8,8,8]", "crop=16", "latent_channels=2", "photo_fraction=0"),
    "text-to-image": (
        "scenes=6",
        "channels=[16,16]",
        "heads=[2,2]",
        "text_width=16",
        "text_layers=1",
        "max_length=64",
    ),
    "extractor": ("code_images=32", "photo_fraction=0", "clean_images=64"),
    "token-language": ("scenes=6", "photo_fraction=0"),
    "token-mapper": ("scenes=6", "vectors=2"),
}
INPUTS = {
    "text-to-image": ("vae=autoencoder/model/vae", "latents=latents.safetensors"),
    "extractor": ("vae=autoencoder/model/vae", "code=code.safetensors"),
    "token-language": ("model=text-to-image/model", "networks=extractor/model", "latents=latents.safetensors"),
    "token-mapper": ("model=text-to-image/model", "networks=extractor/model", "latents=latents.safetensors"),
}


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A folder, and what trains small models there, each with those before it."""
    from privgen.cli.main import main

    folder = tmp_path_factory.mktemp("chain")

    def run(kind, *arguments):
        changes = [f"{kind}.{change}" for change in SETTINGS[kind]]
        for change in INPUTS.get(kind, ()):
            name, _, place = change.partition("=")
            changes.append(f"{kind}.{name}={folder / place}")
        words = [word for change in ("loop.batch_size=2", "loop.log_every=1", *changes) for word in ("--set", change)]
        words += ["-o", folder / kind, "--steps", 2, "--device", "cpu", "--json", *arguments]
        return CliRunner().invoke(main, ["train", kind, *map(str, words)], prog_name="privgen")

    return folder, run


@pytest.mark.slow
def test_one_after_the_other(chain):
    folder, run = chain
    for kind in SETTINGS:
        more = ["--immiscible"] if kind == "text-to-image" else []
        stopped = run(kind, *more, "--stop-at", 1)
        assert stopped.exit_code == 0, stopped.output
        result = run(kind, *more)
        assert result.exit_code == 0, result.output
        assert json.loads(result.stdout)["step"] == 2
        assert (folder / kind / "loss.png").is_file()
    assert "immiscible = true" in (folder / "text-to-image" / "recipe.toml").read_text()
    assert "samples" not in (folder / "token-mapper" / "recipe.toml").read_text()
    assert '"jpeg", "erase"' in (folder / "token-mapper" / "recipe.toml").read_text()
    extractor = Extractor.from_pretrained(folder / "token-mapper" / "model" / "extractor")
    tokens = TokenMapper.from_pretrained(folder / "token-mapper" / "model" / "token_mapper")
    assert extractor.config.n_bits == tokens.config.n_bits
    assert extractor.config.size == 64
    assert tokens.config.width == 16
    words = TokenMapper.from_pretrained(folder / "token-language" / "model" / "privgen" / "token_mapper")
    assert (words.config.vectors, words.config.width) == (TokenLanguageRecipe().cells ** 2, 16)
    assert (folder / "token-language" / "model" / "model_index.json").is_file()
    pipe = StableDiffusionPipeline.from_pretrained(folder / "text-to-image" / "model", safety_checker=None)
    assert (pipe.unet.config.cross_attention_dim, pipe.unet.config.sample_size) == (16, 8)
    other = run("text-to-image")
    assert other.exit_code == 2
    assert "text-to-image.immiscible: True there, False now" in " ".join(other.stderr.split())
    refused = run("token-mapper", "-o", folder / "other", "--set", "token-mapper.scenes=7")
    assert refused.exit_code == 1
    assert "holds 6 scenes, and the recipe asks for 7; set scenes=6" in " ".join(refused.stderr.split())


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("extractor", {"vae": "none"}, "There is no autoencoder in none; make one with `privgen train autoencoder`"),
        ("token-mapper", {"model": "none"}, "There is no text-to-image model in none; make one with `privgen"),
        ("token-mapper", {"model": ".", "latents": "none"}, "There is no cache of scenes in none; make one with"),
        ("token-language", {"model": ".", "networks": "none"}, "There is no extractor with its patterns in none;"),
        ("aligner", {"start": "none"}, "in none; make one with `privgen train extractor` or set aligner.start."),
        ("extractor", {"vae": ".", "distortions": '["jpg"]'}, "Nothing is trained against jpg; choose from jpeg,"),
        ("token-mapper", {"model": ".", "latents": "file", "distortion_scale": "2"}, "a scale from 0 to 1, not 2"),
    ],
)
def test_what_must_be_there_first(cli, tmp_path, monkeypatch, kind, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    words = [word for name, value in changes.items() for word in ("--set", f"{kind}.{name}={value}")]
    result = cli("train", kind, "-o", "run", "--device", "cpu", *words)
    assert result.exit_code in (1, 2)
    assert message in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


def test_the_loss_curve_is_drawn_with_every_checkpoint(classifier, tmp_path, monkeypatch):
    """The run dies at its preview, after its last checkpoint and before its end."""

    def die(task):
        raise KeyboardInterrupt

    monkeypatch.setattr(ClassifierTask, "preview", die)
    assert classifier().exit_code != 0
    assert (tmp_path / "run" / "loss.png").is_file()
    assert not (tmp_path / "run" / "model").exists()


def test_before_anything_is_logged_there_is_no_curve(classifier, tmp_path):
    result = classifier("--set", "loop.log_every=5", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["loss"] is None
    assert not (tmp_path / "run" / "loss.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classifier", "--set", "loop.stepz=3"), "--set loop.stepz=3: there is no field 'stepz'; choose from steps,"),
        (("classifier", "--recipe", "none.toml"), "The recipe none.toml cannot be read"),
        (("classifier", "--steps", "0"), "--steps"),
        (("gan",), "No such command 'gan'; choose from aligner, auto"),
    ],
)
def test_wrong_usage(cli, arguments, message, tmp_path):
    result = cli("train", *arguments, *(("-o", tmp_path / "run") if len(arguments) > 1 else ()))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_autoencoder_comes_first(cli, tmp_path):
    result = cli("train", "text-to-image", "-o", tmp_path / "run", "--set", f"text-to-image.vae={tmp_path / 'none'}")
    assert result.exit_code == 1
    assert "none; make one with `privgen train autoencoder` or set text-to-image.vae" in " ".join(
        result.stderr.split()
    )
    assert not (tmp_path / "run").exists()


def test_no_such_device(cli, tmp_path):
    result = cli("train", "classifier", "-o", tmp_path / "run", "--device", "abacus")
    assert result.exit_code == 2
    assert "'abacus' is not a device" in result.stderr


TWO = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "-m", "privgen", "train", "classifier")


@pytest.mark.slow
def test_two_processes(python, tmp_path):
    result = python(*TWO, "-o", tmp_path / "run", "--steps", 2, *SMALL, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["step"] == 2
    assert len((tmp_path / "run" / "loss.jsonl").read_text().splitlines()) == 2


@pytest.mark.slow
def test_batches_that_processes_cannot_share(python, tmp_path):
    result = python(*TWO, "-o", tmp_path / "run", "--set", "loop.batch_size=3", cwd=tmp_path)
    assert result.returncode != 0
    assert "2 processes cannot share batches of 3 evenly" in " ".join(result.stderr.split())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_accelerate_launches_it(python, tmp_path):
    launch = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", 1, "--num_machines", 1)
    more = ("--mixed_precision", "no", "--dynamo_backend", "no", "-m", "privgen", "train", "classifier")
    result = python(*launch, *more, "-o", tmp_path / "run", "--steps", 2, *SMALL, "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["step"] == 2
