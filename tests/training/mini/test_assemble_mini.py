import importlib.util
import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from privgen.metrics.scenes import load_classifier
from privgen.models.extractor import Extractor
from privgen.models.initialise import seeded_weights
from privgen.models.mappers import LatentMapper, TokenMapper
from privgen.training.loop import LoopOptions
from privgen.training.mini.classifier import ClassifierRecipe
from privgen.training.recipes import Recipe
from privgen.training.run import train


WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def script(root):
    spec = importlib.util.spec_from_file_location("assemble_mini", root / "benchmarks" / "assemble_mini.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def networks():
    """Untrained ones, by the name of their folder."""
    with seeded_weights(0):
        mappers = {
            "latent_mapper": LatentMapper(48, channels=4, size=16, strength=0.1),
            "token_mapper": TokenMapper(48, vectors=2, width=32, hidden=8),
        }
        return {"extractor": Extractor(48, 32, 4, (8, 8, 8), 1, 8, False, pilots=4).eval(), **mappers}


@pytest.fixture(scope="module")
def runs(tiny, networks, tmp_path_factory):
    """A run of every kind; that of the classifier has not ended."""
    folder = tmp_path_factory.mktemp("runs")
    pipe = tiny.tiny_pipeline()
    pipe.save_pretrained(folder / "text-to-image" / "model")
    pipe.vae.save_pretrained(folder / "autoencoder" / "model" / "vae")
    for kind, mapper in (("extractor", "latent_mapper"), ("token-mapper", "token_mapper")):
        for name in ("extractor", mapper):
            networks[name].save_pretrained(folder / kind / "model" / name)
    recipe = Recipe("classifier", ClassifierRecipe(channels=(8,)), LoopOptions(3, 2, 0.01, log_every=1))
    train(recipe, folder / "classifier", device="cpu", stop_at=2)
    return folder


@pytest.fixture
def assemble(script, runs, tmp_path):
    """Puts runs together in `tmp_path / "mini"`."""

    def call(*kinds, places=None, more=()):
        named = [word for kind in kinds for word in (f"--{kind}", (places or {}).get(kind, runs / kind))]
        return CliRunner().invoke(script.main, [str(w) for w in [*named, "-o", tmp_path / "mini", *more]])

    return call


def dtypes(file):
    return {name: value.dtype for name, value in load_file(file).items()}


def test_all_runs(assemble, runs, networks, tmp_path):
    kinds = ("text-to-image", "autoencoder", "extractor", "token-mapper", "classifier")
    result = assemble(*kinds, more=["--carrier", "token"])
    assert result.exit_code == 0, result.output
    mini = tmp_path / "mini"
    assert [path.name for path in tmp_path.iterdir()] == ["mini"]
    pipe = StableDiffusionPipeline.from_pretrained(mini, safety_checker=None)
    before = StableDiffusionPipeline.from_pretrained(runs / "text-to-image" / "model", safety_checker=None)
    for part, file in (("unet", WEIGHTS), ("vae", WEIGHTS), ("text_encoder", "model.safetensors")):
        assert set(dtypes(mini / part / file).values()) == {torch.float16}
        loaded, expected = getattr(pipe, part).state_dict(), getattr(before, part).state_dict()
        assert all(torch.equal(value, expected[name].half().float()) for name, value in loaded.items())
    kinds = dtypes(mini / "privgen" / "extractor" / WEIGHTS)
    assert {name for name, kind in kinds.items() if kind == torch.float32} == {"mean", "whitening"}
    loaded, expected = Extractor.from_pretrained(mini / "privgen" / "extractor"), networks["extractor"].state_dict()
    assert loaded.dtype == torch.float32
    for name, value in loaded.state_dict().items():
        exact = name in ("mean", "whitening")
        assert torch.equal(value, expected[name] if exact else expected[name].half().float()), name
    for cls, name in ((TokenMapper, "token_mapper"), (LatentMapper, "latent_mapper")):
        assert cls.from_pretrained(mini / "privgen" / name).dtype == torch.float32
    assert load_classifier(mini / "privgen" / "classifier").config.channels in ([8], (8,))
    assert json.loads((mini / "privgen" / "privgen_config.json").read_text()) == {"default_carrier": "token"}
    assert "averaged weights of step 2 of 3" not in result.output  # it has exported a model
    assert "MB  mini/unet" in result.output
    assert not any("_name_or_path" in path.read_text() for path in mini.rglob("*.json"))


def test_what_is_not_named_stays(assemble, runs, tmp_path):
    assert assemble("text-to-image", "extractor").exit_code == 0
    mini = tmp_path / "mini"
    assert not (mini / "privgen" / "privgen_config.json").exists()
    (mini / "README.md").write_text("about it")
    (mini / "privgen" / "privgen_config.json").write_text('{"default_carrier": "latent", "other": 1}')
    refused = assemble("token-mapper")
    assert refused.exit_code == 1
    assert "mini exists; choose another folder, or pass --overwrite" in refused.output
    unet = (mini / "unet" / WEIGHTS).read_bytes()
    result = assemble("token-mapper", more=["--overwrite"])
    assert result.exit_code == 0, result.output
    assert (mini / "README.md").read_text() == "about it"
    assert (mini / "unet" / WEIGHTS).read_bytes() == unet
    assert (mini / "privgen" / "latent_mapper" / WEIGHTS).is_file()
    config = json.loads((mini / "privgen" / "privgen_config.json").read_text())
    assert config == {"default_carrier": "latent", "other": 1}
    other = tmp_path / "other"
    shutil.copytree(runs / "extractor", other)
    LatentMapper(48, channels=4, size=16, strength=0.1).save_pretrained(other / "model" / "latent_mapper")
    again = assemble("extractor", places={"extractor": other}, more=["--overwrite"])
    assert "writes other patterns than this extractor reads" in again.output


def test_a_model_that_has_learnt_words(assemble, runs, networks, tmp_path):
    run = tmp_path / "run" / "model"
    shutil.copytree(runs / "text-to-image" / "model", run)
    networks["token_mapper"].save_pretrained(run / "privgen" / "token_mapper")
    result = assemble("token-language", "extractor", places={"token-language": run.parent})
    assert result.exit_code == 0, result.output
    StableDiffusionPipeline.from_pretrained(tmp_path / "mini", safety_checker=None)
    for name in ("token_mapper", "extractor", "latent_mapper"):
        assert (tmp_path / "mini" / "privgen" / name / WEIGHTS).is_file()


def test_the_average_of_an_unfinished_run(assemble, runs, tmp_path):
    unfinished = tmp_path / "run"
    shutil.copytree(runs / "classifier", unfinished)
    averaged = load_file(unfinished / "checkpoint" / "ema.safetensors")
    averaged["classifier.head.bias"] += 0.25  # what the exported model does not hold
    save_file(averaged, unfinished / "checkpoint" / "ema.safetensors")
    places = {"classifier": unfinished}
    result = assemble("text-to-image", "classifier", places=places, more=["--checkpoint", "classifier"])
    assert result.exit_code == 0, result.output
    assert "averaged weights of step 2 of 3" in result.output
    stored = load_classifier(tmp_path / "mini" / "privgen" / "classifier").state_dict()
    for name, value in stored.items():
        assert torch.equal(value, averaged[f"classifier.{name}"].half().float()), name


def test_a_failure_leaves_what_was_there(assemble, runs, tmp_path):
    assert assemble("text-to-image").exit_code == 0
    mini = tmp_path / "mini"
    files = {path: path.read_bytes() for path in mini.rglob("*") if path.is_file()}
    other = tmp_path / "other"
    shutil.copytree(runs / "autoencoder", other)
    weights = load_file(other / "model" / "vae" / WEIGHTS)
    weights["encoder.conv_in.bias"] += 1
    save_file(weights, other / "model" / "vae" / WEIGHTS, metadata={"format": "pt"})

    def replaced(kind, run, *more):
        return assemble(kind, places={kind: run}, more=["--overwrite", *more])

    for result, message in (
        (replaced("autoencoder", other), "another encoder than the one"),
        (replaced("token-mapper", runs / "autoencoder"), "holds no token-mapper; name the folder of a run"),
        (replaced("token-mapper", tmp_path / "none"), "There is no run in"),
        (replaced("extractor", runs / "extractor", "--carrier", "token"), "there is no token mapper"),
    ):
        assert result.exit_code == 1
        assert message in " ".join(result.output.split())
    assert files == {path: path.read_bytes() for path in mini.rglob("*") if path.is_file()}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mini", "other"]


def test_a_text_to_image_model_is_needed(assemble, tmp_path):
    result = assemble("extractor")
    assert result.exit_code == 1
    assert "name --text-to-image" in result.output
    assert list(tmp_path.iterdir()) == []


def test_numbers_out_of_range_stay_as_they_are(script, runs, tmp_path):
    shutil.copytree(runs / "extractor" / "model" / "latent_mapper", tmp_path / "latent_mapper")
    file = tmp_path / "latent_mapper" / WEIGHTS
    weights = {"patterns": 1e6 * load_file(file)["patterns"]}
    save_file(weights, file, metadata={"format": "pt"})
    assert "out of the range" in script.halve(tmp_path / "latent_mapper")
    assert torch.equal(load_file(file)["patterns"], weights["patterns"])
