import json

import pytest
from diffusers import AutoencoderKL

from privgen.metrics.scenes import load_classifier


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
    tiny = ("channels=[8,8,8,8]", "crop=16", "latent_channels=2", "photo_share=0")
    changes = [word for change in tiny for word in ("--set", f"vae.{change}")]
    result = cli(
        "train", "vae", "-o", tmp_path, "--steps", 2, "--device", "cpu", "--set", "loop.batch_size=2", *changes
    )
    assert result.exit_code == 0, result.output
    assert AutoencoderKL.from_pretrained(tmp_path / "model" / "vae").config.latent_channels == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("classifier", "--set", "loop.stepz=3"), "--set loop.stepz=3: there is no field 'stepz'; choose from steps,"),
        (("classifier", "--recipe", "none.toml"), "The recipe none.toml cannot be read"),
        (("classifier", "--steps", "0"), "--steps"),
        (("gan",), "No such command 'gan'; choose from classifier, diffusion, vae"),
    ],
)
def test_wrong_usage(cli, arguments, message, tmp_path):
    result = cli("train", *arguments, *(("-o", tmp_path / "run") if len(arguments) > 1 else ()))
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_the_autoencoder_comes_first(cli, tmp_path):
    result = cli("train", "diffusion", "-o", tmp_path / "run", "--set", f"diffusion.vae={tmp_path / 'none'}")
    assert result.exit_code == 1
    assert "none; make one with `privgen train vae` or set diffusion.vae" in " ".join(result.stderr.split())
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
