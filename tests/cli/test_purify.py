import json

import pytest
from PIL import Image


METHODS = {
    "diffpure": ("--strength", 20, "--mode", "ode", "--steps", 2, "--repeats", 2, "--space", "latent"),
    "gridpure": ("--strength", 1, "--t-star", 2, "--blend", 0.2, "--tile", 16),
    "impress": ("--strength", 3),
    "regeneration": ("--strength", 20, "--prompt", "a cat", "--guidance-scale", 3),
    "rinsing": ("--strength", 2, "--t", 20),
    "vae": (),
}
LABELS = {
    "diffpure": "DiffPure(strength=20, model='{}', space='latent', mode='ode', steps=2, repeats=2)",
    "gridpure": "GrIDPure(strength=1, model='{}', t_star=2, blend=0.2, tile=16)",
    "impress": "Impress(strength=3, model='{}')",
    "regeneration": "Regeneration(strength=20, model='{}', prompt='a cat', guidance_scale=3.0)",
    "rinsing": "Rinsing(strength=2, model='{}', t=20)",
    "vae": "VaeRoundTrip(strength=1, model='{}')",
}


@pytest.mark.parametrize("method", METHODS)
def test_files_are_purified_at_their_size(method, cli, model, photos, tmp_path):
    call = ("purify", photos, "-o", tmp_path / "out", "--method", method, *METHODS[method], "--model", model, "--json")
    result = cli(*call, "--device", "cpu")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["done"], record["failed"]) == (2, 0)
    assert record["attack"] == LABELS[method].format(model)
    for name in ("a.png", "b.jpg"):
        with Image.open(photos / name) as before, Image.open(tmp_path / "out" / f"{name[0]}.png") as after:
            assert before.size == after.size
            assert before.tobytes() != after.tobytes()
    assert json.loads(cli(*call).stdout)["skipped"] == 2


def test_a_large_photograph_keeps_what_it_has(cli, model, photo_files, tmp_path):
    """By default the model works at its own size, 32 pixels here; the result has that of the photograph."""
    with Image.open(photo_files[0]) as image:
        exif = Image.Exif()
        exif[0x010F] = "Maker"
        image.convert("L").resize((1024, 683)).save(tmp_path / "big.jpg", exif=exif, dpi=(300, 300))
    call = ("purify", tmp_path / "big.jpg", "--method", "vae", "--model", model, "--device", "cpu")
    result = cli(*call, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "vae worked at 39 x 26 pixels" in result.stderr
    with Image.open(tmp_path / "out" / "big.png") as after:
        assert (after.size, after.mode, after.getexif()[0x010F]) == ((1024, 683), "L", "Maker")
        assert after.info["dpi"] == pytest.approx((300, 300), abs=0.01)


def test_full_size(cli, model, photos, tmp_path):
    call = ("purify", photos, "-o", tmp_path / "out", "--method", "vae", "--model", model, "--device", "cpu")
    result = cli(*call, "--full", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["attack"] == f"VaeRoundTrip(strength=1, model='{model}', fit='tiles')"
    assert "vae worked in overlapping tiles at full size" in result.stderr


def test_a_run_goes_on(cli, model, photos, tmp_path):
    call = ("purify", photos, "-o", tmp_path / "out", "--method", "vae", "--model", model, "--device", "cpu")
    assert cli(*call).exit_code == 0
    (tmp_path / "out" / "b.png").unlink()
    result = cli(*call, "--json")
    assert [file["status"] for file in json.loads(result.stdout)["files"]] == ["skipped", "done"]
    other = cli(*call, "--strength", 2)
    assert other.exit_code == 1
    assert "--overwrite" in other.stderr
    assert cli(*call, "--strength", 2, "--overwrite").exit_code == 0


def test_a_bad_file_does_not_stop_the_rest(cli, model, photos, tmp_path):
    (photos / "b.jpg").write_bytes(b"not an image")
    result = cli("purify", photos, "-o", tmp_path / "out", "--method", "vae", "--model", model, "--device", "cpu")
    assert result.exit_code == 1
    assert "b.jpg" in result.stderr
    assert "done     1" in result.stdout


def test_what_is_missing_shows_at_once(cli, photos, tmp_path):
    result = cli("purify", photos, "-o", tmp_path / "out", "--model", tmp_path / "none")
    assert result.exit_code == 1
    assert "There is no model" in result.stderr
    assert "a.png" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_attack_list_and_run(cli, model, photos, tmp_path):
    rows = {row["name"]: row for row in json.loads(cli("attack", "list", "--json").stdout)}
    assert rows["diffpure"] == {
        "name": "diffpure",
        "kind": "P",
        "unit": "steps of 1000",
        "sweep": [75, 85, 100, 125, 150],
        "identity": 0,
    }
    assert {name for name, row in rows.items() if row["kind"] == "P"} >= {"gridpure", "regeneration", "rinsing", "vae"}
    result = cli(
        "attack", "run", f"regeneration=60,model={model},device=cpu", photos, "-o", tmp_path / "out", "--json"
    )
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["attack"] == f"Regeneration(strength=60, model='{model}')"


@pytest.mark.slow
def test_regeneration_with_mini(cli, photos, tmp_path):
    result = cli("attack", "run", "regeneration=60", photos, "-o", tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "done     2" in result.stdout
