"""What the commands that write images do with a photographer's folder: formats, metadata, other files."""

import json

import pytest
import torch
from photo_folder import SECRETS, make_folder, said_by
from PIL import Image

from privgen.io.images import can_write, load_image
from privgen.io.metadata import KINDS
from privgen.watermark.key import Key, Secret


COMMANDS = {
    "embed": ("watermark", "embed", "--key", "alice.key", "--carrier", "tile"),
    "protect": ("protect", "--method", "shield"),
    "attack": ("attack", "run", "brightness=0.9"),
    "purify": ("purify", "--method", "vae"),
}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """The folder that commands run in, with a key and one photograph."""
    monkeypatch.chdir(tmp_path)
    Key("alice", Secret(bytes(32))).save("alice.key")
    Image.linear_gradient("L").convert("RGB").resize((300, 200)).save("b.jpg", quality=75)
    return tmp_path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The folder of `tests/photo_folder.py`, what its files are, and what is read from those that are images."""
    path = tmp_path_factory.mktemp("photographer") / "photos"
    files = make_folder(path)
    images = [file for file, photo in files.items() if photo.is_image and not photo.refused]
    return path, files, {file: load_image(file) for file in images}


@pytest.mark.parametrize(
    ("command", "keeping"), [("embed", "keep"), ("protect", "keep"), ("attack", "private"), ("purify", "keep")]
)
def test_every_file_goes_in_and_out(folder, model, cli, tmp_path, monkeypatch, command, keeping):
    source, files, read = folder
    assert len(files) >= 60
    monkeypatch.chdir(tmp_path)
    Key("alice", Secret(bytes(32))).save("alice.key")
    same = command in ("embed", "protect")
    options = ("--format", "same") if same else ()
    options += ("--model", model) if command in ("embed", "purify") else ()
    args = (*COMMANDS[command], *options, source, "-o", "out", "--recursive", "--metadata", keeping)
    result = cli(*args)
    assert result.exit_code == 1, result.output
    lines = result.stderr.splitlines()
    said = {file: [line for line in lines if str(file) in line] for file in files}
    unread = sum(not photo.is_image and not file.name.startswith(".") for file, photo in files.items())
    assert f"{unread} of {len(files) - 1} files skipped, which are no images that are read: " in result.stderr
    for file, photo in files.items():
        suffix = file.suffix if same and can_write(file.suffix) else ".png"
        target = (tmp_path / "out" / file.relative_to(source)).with_suffix(suffix)
        assert target.exists() == (file in read), file
        if photo.refused:
            assert any(photo.refused in line for line in said[file]), (file, said[file])
        if file in read:
            missing = [note for note in photo.notes if f"{file}: {note}" not in lines]
            assert all(note.startswith("it became PNG") and not same for note in missing), (file, missing)
            _came_out_as_it_was(file, target, read[file], keeping)
    again = json.loads(cli(*args, "--json").stdout)
    assert (again["done"], again["skipped"]) == (0, len(read))
    assert all(file["psnr"] for file in again["files"] if file["status"] == "skipped")


def _came_out_as_it_was(source, target, loaded, keeping):
    """Check size, mode, precision, metadata and coding of a result."""
    result = load_image(target)
    for name in ("width", "height", "grey", "bits"):
        assert getattr(result, name) == getattr(loaded, name), (target, name)
    assert (result.alpha is None) == (loaded.alpha is None), target
    if loaded.alpha is not None:
        torch.testing.assert_close(result.alpha, loaded.alpha, rtol=0, atol=0.02 if target.suffix == ".avif" else 0)
    if target.suffix == source.suffix and loaded.mode != "CMYK":
        assert result.coding == loaded.coding, target
    before, after = said_by(source), said_by(target)
    if keeping == "private":
        assert not [secret for secret in (*SECRETS, b"Paris", b"Rivoli") if secret in target.read_bytes()]
        assert not (after["exif"] or ({}, {}, {}))[2]
    # Pillow reads a resolution from EXIF data, and BMP files always say one.
    for kind in KINDS if keeping == "keep" else ("icc_profile", "comment"):
        if kind != "dpi" or (source.suffix != ".bmp" and before["dpi"] is not None):
            assert after[kind] == before[kind], (target, kind)


def test_one_file_to_one_file_of_a_chosen_quality(photos, cli):
    source = photos / "b.jpg"
    for name, options in (("like.jpg", ()), ("better.jpg", ("--quality", 95))):
        result = cli(*COMMANDS["embed"], source, "-o", name, *options)
        assert result.exit_code == 0, result.output
    with Image.open(source) as before, Image.open("like.jpg") as like, Image.open("better.jpg") as better:
        assert like.quantization == before.quantization
        assert sum(better.quantization[0]) < sum(before.quantization[0])
    assert not list(photos.glob("*.jsonl"))
    refused = cli(*COMMANDS["attack"], source, "-o", "out.jpg")
    assert (refused.exit_code, "must end in .png" in refused.stderr) == (2, True)
    refused = cli(*COMMANDS["protect"], source, "-o", "out", "--quality", 90)
    assert (refused.exit_code, "--quality needs --format same" in refused.stderr) == (2, True)
