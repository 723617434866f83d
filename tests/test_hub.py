import json
import os
from pkgutil import resolve_name

import pytest
import torch
from diffusers import ConfigMixin, ModelMixin, StableDiffusionPipeline
from diffusers.configuration_utils import register_to_config
from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
from transformers.utils import logging as transformers_logging

from privgen import hub
from privgen.errors import PrivgenError, UsageError
from privgen.hub import (
    find_extra,
    load_extra,
    load_pipeline,
    model_label,
    resolve_device,
    resolve_dtype,
    resolve_model,
)
from privgen.models.loading import quiet_loading


class Tiny(ModelMixin, ConfigMixin):
    @register_to_config
    def __init__(self, n_bits=8):
        super().__init__()
        self.linear = torch.nn.Linear(n_bits, 2)

    def forward(self, bits):
        return self.linear(bits)


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory):
    """A folder with a tiny pipeline and an extractor of it."""
    folder = tmp_path_factory.mktemp("models") / "own"
    tiny.tiny_pipeline().save_pretrained(folder)
    Tiny(16).save_pretrained(folder / "privgen" / "extractor")
    return folder


@pytest.fixture
def copied(saved, tmp_path):
    """The same folder, to be damaged."""
    import shutil

    return shutil.copytree(saved, tmp_path / "copy")


@pytest.fixture
def networks(monkeypatch):
    for classes in hub.EXTRAS.values():
        for name, module in classes.items():
            monkeypatch.setattr(f"privgen.models.{module}.{name}", Tiny)


def test_a_model_is_embedded_or_a_folder_or_a_hub_id(saved, monkeypatch, tmp_path):
    assert resolve_model(saved) == resolve_model(str(saved)) == str(saved)
    assert resolve_model("organisation/name-1.5_a") == "organisation/name-1.5_a"
    monkeypatch.setattr(hub, "_MODELS", saved.parent)
    monkeypatch.setattr(hub, "EMBEDDED", ("own",))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    assert resolve_model("own") == str(saved)  # an embedded name wins


def test_a_home_folder_is_found(saved, monkeypatch):
    monkeypatch.setenv("HOME", str(saved.parent))
    assert resolve_model("~/own") == str(saved)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("mnii", "There is no model 'mnii'; name an embedded one"),
        ("/no/such/folder", "There is no model"),
        ("a/b/c", "There is no model"),
        ("../a", "There is no model"),
        ("", "There is no model"),
        ("folder", "has no model_index.json"),
        ("file.safetensors", "is a file, and models are folders"),
    ],
)
def test_what_is_no_model_is_refused(name, match, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    (tmp_path / "file.safetensors").touch()
    with pytest.raises(PrivgenError, match=match):
        resolve_model(name)


def test_a_missing_embedded_model_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "_MODELS", tmp_path)
    with pytest.raises(PrivgenError, match="mini is missing from this installation"):
        resolve_model()


def test_devices_are_resolved(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(hub, "_has_mps", lambda: False)
    assert resolve_device() == resolve_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(hub, "_has_mps", lambda: True)
    assert resolve_device() == resolve_device("mps") == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert resolve_device() == torch.device("cuda")
    assert resolve_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("gpu", UsageError, "is not a device"),
        ("cuda:x", UsageError, "is not a device"),
        ("cuda:7", PrivgenError, "finds no device cuda:7"),
        ("mps", PrivgenError, "finds no device mps"),
    ],
)
def test_devices_that_are_not_there(name, error, match, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(hub, "_has_mps", lambda: False)
    with pytest.raises(error, match=match):
        resolve_device(name)


def test_precisions_are_resolved():
    assert resolve_dtype() == resolve_dtype("auto", "mps") == torch.float32
    assert resolve_dtype("auto", "cuda:1") == torch.float16
    assert resolve_dtype("bfloat16", "cuda") == resolve_dtype(torch.bfloat16) == torch.bfloat16
    with pytest.raises(UsageError, match="'half' is not a precision; use auto, float32, float16, bfloat16"):
        resolve_dtype("half")


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_a_pipeline_is_loaded_in_its_precision(saved, dtype, expected):
    pipe = load_pipeline(saved, device="cpu", dtype=dtype)
    assert type(pipe) is StableDiffusionPipeline
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype} == {expected}
    assert (pipe.device.type, pipe.safety_checker) == ("cpu", None)


def test_a_pipeline_can_be_loaded_as_another_class(saved):
    class Mine(StableDiffusionPipeline):
        pass

    assert type(load_pipeline(saved, device="cpu", pipeline_class=Mine, safety_checker=False)) is Mine


def damage(folder, kind):
    index = folder / "model_index.json"
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    if kind == "cut index":
        index.write_text(index.read_text()[:40])
    elif kind == "no weights":
        weights.unlink()
    elif kind == "pickle":
        weights.rename(weights.with_suffix(".bin"))
    elif kind == "cut weights":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "no folder":
        (folder / "unet" / "config.json").unlink()
    elif kind == "own class":
        (folder / "mine.py").write_text("raise SystemExit('code was run')")
        index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": ["mine", "Mine"]}))
    elif kind == "own part":
        (folder / "unet" / "mine.py").write_text("raise SystemExit('code was run')")
        index.write_text(json.dumps({**json.loads(index.read_text()), "unet": ["mine", "Mine"]}))
    elif kind == "unknown class":
        index.write_text(json.dumps({**json.loads(index.read_text()), "_class_name": "NoSuchPipeline"}))


@pytest.mark.parametrize(
    ("kind", "match"),
    [
        ("cut index", "could not load"),
        ("no weights", "could not load .*weights are safetensors"),
        ("pickle", "could not load .*weights are safetensors"),
        ("cut weights", "could not load"),
        ("no folder", "could not load"),
        ("unknown class", "could not load .*NoSuchPipeline"),
        ("own class", "comes with code of its own"),
        ("own part", "comes with code of its own"),
    ],
)
def test_a_damaged_or_unsafe_folder_is_one_sentence(copied, kind, match):
    damage(copied, kind)
    with pytest.raises(PrivgenError, match=match) as caught:
        load_pipeline(copied, device="cpu")
    assert str(copied) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_network_a_hub_id_is_one_sentence():
    with pytest.raises(PrivgenError, match=r"could not load organisation/name.*HF_HUB_OFFLINE"):
        load_pipeline("organisation/name", device="cpu")
    with pytest.raises(PrivgenError, match=r"could not fetch the extractor of organisation/name.*HF_HUB_OFFLINE"):
        load_extra("extractor", "organisation/name", device="cpu")


def test_extras_are_loaded_from_a_folder_or_by_a_pipeline(saved, networks):
    assert find_extra("extractor", saved) == saved / "privgen" / "extractor"
    extractor = load_extra("extractor", saved, device="cpu")
    assert isinstance(extractor, Tiny)
    assert (extractor.config.n_bits, extractor.training, extractor.dtype) == (16, False, torch.float32)
    pipe = load_pipeline(saved, device="cpu")
    again = load_extra("extractor", pipe, device="cpu")
    assert torch.equal(again.linear.weight, extractor.linear.weight)


def test_extras_of_the_hub_are_downloaded_alone(saved, networks, monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "snapshot_download", lambda *args, **kwargs: asked.append((args, kwargs)) or str(saved))
    load_extra("extractor", "organisation/name", device="cpu", revision="v1")
    patterns = ["privgen/extractor/*.json", "privgen/extractor/*.safetensors"]
    assert asked == [(("organisation/name",), {"revision": "v1", "allow_patterns": patterns})]


def test_missing_extras_say_what_to_do(saved, networks, monkeypatch, tiny):
    with pytest.raises(
        PrivgenError, match=r"has no token_mapper for privgen \(no file privgen/token_mapper/config.json"
    ):
        load_extra("token_mapper", saved, device="cpu")
    monkeypatch.setattr(hub, "_MODELS", saved.parent)
    monkeypatch.setattr(hub, "EMBEDDED", ("own",))
    with pytest.raises(PrivgenError, match="embedded model own lacks its latent_mapper; install privgen again"):
        load_extra("latent_mapper", "own", device="cpu")
    with pytest.raises(PrivgenError, match="was not loaded from a model"):
        load_extra("extractor", tiny.tiny_pipeline(), device="cpu")
    with pytest.raises(UsageError, match="'mapper' is not a network of this package; choose from extractor"):
        load_extra("mapper", saved, device="cpu")


def test_damaged_extras_are_one_sentence(copied, networks):
    weights = copied / "privgen" / "extractor" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(b"nothing")
    with pytest.raises(PrivgenError, match="could not load the extractor of"):
        load_extra("extractor", copied, device="cpu")


def test_every_extra_has_its_class():
    named = [f"privgen.models.{module}.{name}" for classes in hub.EXTRAS.values() for name, module in classes.items()]
    assert all(issubclass(resolve_name(name), ModelMixin) for name in named)


def test_work_is_quiet_and_leaves_no_trace(python, marked_model):
    """In a fresh Python, before anything else has imported a pipeline: no bars, no warnings, no notices."""
    code = f"""
from PIL import Image
from privgen.training.recipes import load_recipe
load_recipe("text-to-image")
from privgen import Key, Watermark
mark, key = Watermark.from_pretrained({str(marked_model)!r}, device="cpu"), Key.new("alice")
image = mark.embed(Image.linear_gradient("L").convert("RGB"), key)
mark.detect(image, key)
from diffusers.utils import logging as diffusers_logging
from huggingface_hub.utils.tqdm import are_progress_bars_disabled
from transformers.utils import logging as transformers_logging
print(diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled())
print(are_progress_bars_disabled(), transformers_logging.get_verbosity() == transformers_logging.WARNING)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRANSFORMERS_VERBOSITY"}
    result = python("-c", code, env=environment)
    assert (result.stdout.split(), result.stderr) == (["True", "True", "False", "True"], "")


def test_quiet_loading_puts_back_what_a_user_has_set():
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    try:
        with pytest.raises(ZeroDivisionError), quiet_loading():
            _ = 1 / 0
        assert not transformers_logging.is_progress_bar_enabled()
        assert are_progress_bars_disabled()
    finally:
        transformers_logging.enable_progress_bar()


def test_a_model_is_labelled_without_its_place(saved):
    assert model_label("mini") == "mini"
    assert model_label(saved) == saved.name
    assert model_label("organisation/name") == "organisation/name"
