"""The nodes for ComfyUI run its workflow, in the stand-in of `comfy_stand_in.py`."""

import importlib.util
import json
import sys
import tomllib
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from privgen import Credentials, Key, UsageError, Watermark


@pytest.fixture(scope="module")
def stand_in(root):
    spec = importlib.util.spec_from_file_location("comfy_stand_in", root / "tests" / "comfy_stand_in.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.fixture
def key(tmp_path, monkeypatch):
    monkeypatch.setenv("PRIVGEN_KEYS", str(tmp_path / "keys"))
    monkeypatch.setenv("PRIVGEN_CREDENTIALS", str(tmp_path / "credentials"))
    made = Key.new("alice")
    made.save(tmp_path / "keys" / "alice.key")
    return made


@pytest.fixture
def images(photo_files):
    """Two images as ComfyUI loads them: (2, 128, 160, 3), floats in [0, 1]."""
    pillow = [Image.open(path).convert("RGB").resize((160, 128)) for path in photo_files[:2]]
    return torch.from_numpy(np.stack(pillow)).float() / 255


@pytest.fixture
def server(root, stand_in, tmp_path, key, images, monkeypatch):
    own = {"LoadImage": lambda image: images, "PreviewAny": lambda source: str(source)}
    patch = partial(monkeypatch.setitem, sys.modules)
    return stand_in.Server(root / "examples" / "comfyui", tmp_path / "output", own, patch)


@pytest.fixture
def workflow(root):
    return json.loads((root / "examples" / "comfyui" / "workflow.json").read_text())


def test_workflow(server, workflow, key, images, tmp_path):
    pytest.importorskip("c2pa")
    Credentials.new("alice").save(tmp_path / "credentials" / "alice.credentials")
    workflow["3"]["inputs"]["carrier"] = "tile"  # the quick one
    done, mark = server.run(workflow), Watermark.from_pretrained("mini")

    [marked] = done["3"].args
    singly = [mark.embed(image.movedim(-1, 0), key, payload=7, carrier="tile").movedim(0, -1) for image in images]
    assert torch.equal(marked, torch.stack(singly))

    detected, p_value, report = done["4"].args
    assert detected
    assert p_value < 1e-20
    assert [line.count("alice") for line in report.splitlines()] == [1, 1]
    assert done["5"].args == (report,)

    files = [Path(line) for line in done["6"].args[0].splitlines()]
    assert [file.name for file in files] == ["signed_00001_.png", "signed_00002_.png"]
    assert [shown["filename"] for shown in done["6"].ui["images"]] == [file.name for file in files]
    for file, image in zip(files, marked, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), (image * 255).round().byte().numpy())
        verified = mark.verify(file, key)
        assert verified.credentials.state == "valid"
        assert verified.detection.payload == 7
        assert verified.agreement == "same"


def test_unmarked_images_are_not_found_and_not_signed(server, workflow, tmp_path):
    pytest.importorskip("c2pa")
    Credentials.new("alice").save(tmp_path / "credentials" / "alice.credentials")
    unmarked = ["1", 0]
    workflow["4"]["inputs"]["image"] = workflow["6"]["inputs"]["image"] = unmarked
    assert server.run({name: workflow[name] for name in "124"})["4"].args[0] is False
    with pytest.raises(UsageError, match="connect Mark before Sign"):
        server.run(workflow)
    assert not list(tmp_path.rglob("*.png"))


def test_the_pack_fits_the_registry(root):
    folder = root / "examples" / "comfyui"
    project = tomllib.loads((folder / "pyproject.toml").read_text())
    requirements = (folder / "requirements.txt").read_text().split()
    assert project["project"]["dependencies"] == requirements
    assert {"PublisherId", "DisplayName", "Icon"} <= project["tool"]["comfy"].keys()
    ours = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "c2pa" in ours
