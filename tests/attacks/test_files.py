import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from privgen.attacks import JPEG, Noise, attack_files, get_attack
from privgen.errors import PrivgenError, UsageError
from privgen.io.batches import BatchOptions
from privgen.io.images import load_image


@pytest.fixture
def photos(tmp_path, pictures):
    """A folder with three pictures of different sizes and kinds."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for name, size in (("a.png", (40, 60)), ("b.jpg", (33, 21)), ("c.webp", (50, 50))):
        pixels = (pictures(1, *size)[0] * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / name)
    return folder


def status(result):
    return [file.status for file in result.files]


def test_files_are_attacked_as_tensors_are(photos, tmp_path):
    result = attack_files(JPEG(strength=30), [photos], tmp_path / "out")
    assert status(result) == ["done"] * 3
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png", "b.png", "c.png"]
    for file in result.files:
        expected = JPEG(strength=30)(load_image(file.source).pixels[None])[0]
        assert torch.equal(load_image(file.output).pixels, expected)
        assert 15 < file.psnr < 45


def test_a_file_depends_on_seed_and_name_only(photos, tmp_path):
    attack_files(Noise(), [photos], tmp_path / "all", seed=3)
    attack_files(Noise(), [photos / "c.webp"], tmp_path / "one", seed=3)
    attack_files(Noise(), [photos / "c.webp"], tmp_path / "other", seed=4)
    read = lambda folder: (tmp_path / folder / "c.png").read_bytes()  # noqa: E731
    assert read("all") == read("one") != read("other")


def test_alpha_and_grey_stay(tmp_path, pictures):
    pixels = (pictures(1, 30, 30)[0] * 255).byte().permute(1, 2, 0).numpy()
    alpha = np.full((30, 30, 1), 100, np.uint8)
    Image.fromarray(np.concatenate([pixels, alpha], axis=2)).save(tmp_path / "rgba.png")
    Image.fromarray(pixels[..., 0]).save(tmp_path / "grey.png")
    attack_files(get_attack("blur"), [tmp_path / "rgba.png", tmp_path / "grey.png"], tmp_path / "out")
    assert Image.open(tmp_path / "out" / "grey.png").mode == "L"
    with Image.open(tmp_path / "out" / "rgba.png") as image:
        assert (np.asarray(image)[..., 3] == 100).all()


def test_attacks_may_change_the_size(photos, tmp_path):
    rgba = Image.open(photos / "a.png").convert("RGBA")
    rgba.putalpha(100)
    rgba.save(photos / "d.png")
    result = attack_files(get_attack("scale", strength=0.5), [photos], tmp_path / "out")
    assert status(result) == ["done"] * 4
    assert [file.psnr for file in result.files] == [None] * 4
    sizes = [Image.open(tmp_path / "out" / name).size for name in ("a.png", "b.png", "c.png", "d.png")]
    assert sizes == [(30, 20), (10, 16), (25, 25), (30, 20)]
    assert Image.open(tmp_path / "out" / "d.png").mode == "RGB"


def test_resumes(photos, tmp_path):
    out = tmp_path / "out"
    attack_files(Noise(), [photos], out)
    before = (out / "a.png").stat().st_mtime_ns
    (out / "b.png").unlink()
    # The last line of an interrupted run may be cut short.
    with (out / "attacks.jsonl").open("a") as file:
        file.write('{"output": "x')
    assert status(attack_files(Noise(), [photos], out)) == ["skipped", "done", "skipped"]
    assert (out / "a.png").stat().st_mtime_ns == before
    assert status(attack_files(Noise(), [photos], out)) == ["skipped"] * 3


@pytest.mark.parametrize("change", ["attack", "seed", "source", "result"])
def test_refuses_what_was_made_otherwise(change, photos, tmp_path):
    out = tmp_path / "out"
    attack_files(Noise(), [photos], out)
    attack, seed = Noise(), 0
    if change == "attack":
        attack = Noise(strength=0.1)
    elif change == "seed":
        seed = 1
    elif change == "source":
        Image.new("RGB", (40, 40)).save(photos / "a.png")
    else:
        Image.new("RGB", (60, 40)).save(out / "a.png")
    kept = (out / "a.png").read_bytes()
    with pytest.raises(PrivgenError, match=r"of the results exist in .* a\.png first"):
        attack_files(attack, [photos], out, seed=seed)
    assert (out / "a.png").read_bytes() == kept
    result = attack_files(attack, [photos], out, seed=seed, batch=BatchOptions(overwrite=True))
    assert status(result)[0] == "done"
    assert (out / "a.png").read_bytes() != kept


def test_a_bad_file_does_not_stop_the_rest(photos, tmp_path):
    (photos / "b.jpg").write_bytes(b"not an image")
    seen = []
    result = attack_files(JPEG(), [photos, tmp_path / "missing.png"], tmp_path / "out", report=seen.append)
    assert status(result) == ["done", "failed", "done", "failed"]
    assert tuple(seen) == result.files
    assert "b.jpg" in result.files[1].error
    assert "missing.png does not exist" in result.files[3].error
    assert not (tmp_path / "out" / "b.png").exists()


def test_names_that_would_be_one(photos, tmp_path):
    Image.new("RGB", (20, 20)).save(photos / "a.bmp")
    attack_files(JPEG(), [photos], tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").glob("a.*")} == {"a.png.png", "a.bmp.png"}
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (20, 20)).save(other / "a.png")
    attack_files(JPEG(), [photos / "a.png", other], tmp_path / "new")
    assert {path.name for path in (tmp_path / "new").glob("*a.png")} == {"photos-a.png", "other-a.png"}


def test_never_writes_among_its_inputs(photos):
    with pytest.raises(UsageError, match="inputs come from"):
        attack_files(JPEG(), [photos], photos, batch=BatchOptions(overwrite=True))


def test_results_are_png(photos, tmp_path):
    with pytest.raises(UsageError, match="written as PNG"):
        attack_files(JPEG(), [photos], tmp_path / "out", batch=BatchOptions(keep_format=True))


def test_list_command(cli):
    rows = json.loads(cli("attack", "list", "--json").stdout)
    jpeg = next(row for row in rows if row["name"] == "jpeg")
    assert jpeg == {"name": "jpeg", "kind": "D", "unit": "quality", "sweep": [90, 70, 50, 30, 10], "identity": 100}
    assert "jpeg" in cli("attack", "list").stdout


def test_run_command(cli, photos, tmp_path):
    call = ("attack", "run", "noise=0.02", photos, "-o", tmp_path / "out", "--seed", "3", "--json")
    first, second = cli(*call), cli(*call)
    assert first.exit_code == second.exit_code == 0
    record = json.loads(first.stdout)
    assert record["attack"] == "Noise(strength=0.02)"
    assert (record["done"], record["skipped"], record["failed"], record["seed"]) == (3, 0, 0, 3)
    assert [Path(file["output"]).name for file in record["files"]] == ["a.png", "b.png", "c.png"]
    assert json.loads(second.stdout)["skipped"] == 3
    refused = cli(*call[:2], "noise=0.05", *call[3:])
    assert refused.exit_code == 1
    assert "--overwrite" in refused.stderr
    assert cli(*call[:2], "noise=0.05", *call[3:], "--overwrite").exit_code == 0


def test_run_command_with_attacks_in_a_row(cli, photos, tmp_path):
    result = cli("attack", "run", "border=0.1 then jpeg=50", photos, "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["attack"] == "Sequence(Border(strength=0.1), JPEG(strength=50))"
    assert Image.open(tmp_path / "out" / "a.png").size == (68, 48)


def test_run_command_with_a_bad_file(cli, photos, tmp_path):
    (photos / "b.jpg").write_bytes(b"not an image")
    result = cli("attack", "run", "jpeg", photos, "-o", tmp_path / "out")
    assert result.exit_code == 1
    assert "b.jpg" in result.stderr
    assert "done     2" in result.stdout


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("jpg=50", "There is no attack 'jpg'; choose from"),
        ("jpeg=500", "expected a strength in [1, 100]"),
        ("jpeg then jpg", "There is no attack 'jpg'; choose from"),
    ],
)
def test_run_command_with_wrong_attack(cli, photos, tmp_path, name, message):
    result = cli("attack", "run", name, photos, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert message in result.stderr
