"""What the commands that write images do with a photographer's folder: metadata, folders inside, other files."""

import pytest
from PIL import Image, PngImagePlugin

from privgen.watermark.key import Key, Secret


COMMANDS = {
    "embed": ("watermark", "embed", "--key", "alice.key", "--carrier", "tile"),
    "protect": ("protect", "--method", "noise"),
    "attack": ("attack", "run", "brightness=1.1"),
    "purify": ("purify", "--method", "vae"),
}


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Key("alice", Secret(bytes(32))).save("alice.key")
    (tmp_path / "photos" / "2024").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(0x8825)[1] = "N"
    text = PngImagePlugin.PngInfo()
    text.add_text("parameters", "a cat")
    image = Image.linear_gradient("L").convert("RGB")
    image.save("photos/a.png", exif=exif, pnginfo=text, dpi=(300, 300))
    image.resize((300, 200)).save("photos/2024/b.jpg", exif=exif, quality=75, comment=b"rain")
    (tmp_path / "photos" / "c.CR2").write_bytes(b"raw")
    return tmp_path


@pytest.mark.parametrize(
    ("command", "keeping"),
    [("embed", "keep"), ("protect", "strip"), ("protect", "keep"), ("attack", "private"), ("purify", "keep")],
)
def test_every_command_keeps_what_it_is_told_to(photos, cli, command, keeping):
    args = (*COMMANDS[command], "photos", "-o", "out", "--recursive", "--metadata", keeping)
    result = cli(*args)
    assert result.exit_code == 0, result.output
    assert "1 of 3 files skipped, which are no images that are read: photos/c.CR2." in result.stderr
    for name, key, value in (("a.png", "parameters", "a cat"), ("2024/b.png", "Comment", "rain")):
        with Image.open(photos / "out" / name) as image:
            exif = image.getexif()
            assert image.info.get(key) == (None if keeping == "strip" else value)
        assert exif.get(0x010F) == (None if keeping == "strip" else "Maker")
        assert bool(exif.get_ifd(0x8825)) == (keeping == "keep")
    if keeping == "keep":
        again = cli(*args, "--json")
        assert '"skipped": 2' in again.stdout
        assert '"psnr": null' not in again.stdout


def test_one_file_to_one_file_of_a_chosen_quality(photos, cli):
    source = photos / "photos" / "2024" / "b.jpg"
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


def test_formats_that_are_not_written_become_png_and_it_is_said(photos, cli):
    Image.open("photos/a.png").save("photos/d.gif")
    result = cli(*COMMANDS["protect"], "photos/d.gif", "-o", "out", "--format", "same")
    assert result.exit_code == 0
    assert "photos/d.gif: it became PNG, because GIF files are not written" in result.stderr
    assert (photos / "out" / "d.png").read_bytes().startswith(b"\x89PNG")
