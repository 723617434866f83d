import json

import numpy as np
import pytest
from PIL import Image

from privgen.data.scenes import HELDOUT_NOUNS, draw_scene


def test_a_contact_sheet(cli, tmp_path):
    result = cli("data", "scenes", "--n", 5, "--columns", 3, "--size", 64, "-o", tmp_path / "sheet.png")
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width == 8 + 3 * (64 + 8)
        assert sheet.height > 2 * 64


def test_sheets_come_from_their_seed(cli, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path, options in zip(
        paths, [("--seed", 1), ("--seed", 1), ("--seed", 2), ("--seed", 1, "--masks")], strict=True
    ):
        assert cli("data", "scenes", "--n", 2, *options, "-o", path).exit_code == 0
    one, same, other, masks = (path.read_bytes() for path in paths)
    assert one == same
    assert one != other
    assert one != masks


def test_a_folder(cli, tmp_path):
    result = cli("data", "scenes", "--folder", tmp_path / "scenes", "--n", 3, "--seed", 4, "--masks", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["images"] == 3
    rows = [json.loads(line) for line in (tmp_path / "scenes" / "metadata.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    for i, row in enumerate(rows):
        scene = draw_scene(4 + i)
        assert row["text"] == scene.caption
        assert row["seed"] == 4 + i
        with Image.open(tmp_path / "scenes" / row["file_name"]) as image:
            assert np.abs(np.asarray(image) / 255 - scene.pixels.transpose(1, 2, 0)).max() <= 0.51 / 255
        assert len(row["mask_file_names"]) == len(scene.masks)
        for name, mask in zip(row["mask_file_names"], scene.masks, strict=True):
            with Image.open(tmp_path / "scenes" / name) as image:
                assert image.mode == "L"
                assert np.abs(np.asarray(image) / 255 - mask).max() <= 0.51 / 255
    assert {path.name for path in (tmp_path / "scenes").glob("*.png")} == {row["file_name"] for row in rows}


def test_held_out_objects(cli, tmp_path):
    assert cli("data", "scenes", "--folder", tmp_path, "--n", 4, "--held-out").exit_code == 0
    rows = [json.loads(line) for line in (tmp_path / "metadata.jsonl").read_text().splitlines()]
    assert {placed["noun"] for row in rows for placed in row["objects"]} <= set(HELDOUT_NOUNS)
    assert not (tmp_path / "masks").exists()


def test_an_interrupted_folder_is_completed(cli, tmp_path):
    assert cli("data", "scenes", "--folder", tmp_path, "--n", 2).exit_code == 0
    (tmp_path / "metadata.jsonl").unlink()
    (tmp_path / "000001.png").unlink()
    first = (tmp_path / "000000.png").stat()
    assert cli("data", "scenes", "--folder", tmp_path, "--n", 2).exit_code == 0
    assert (tmp_path / "000001.png").exists()
    assert (tmp_path / "000000.png").stat().st_mtime_ns == first.st_mtime_ns


def test_nothing_is_overwritten_unasked(cli, tmp_path):
    sheet, folder = tmp_path / "sheet.png", tmp_path / "scenes"
    folder.mkdir()
    for path in (sheet, folder / "000000.png"):
        path.write_bytes(b"mine")
    result = cli("data", "scenes", "--n", 1, "-o", sheet)
    assert (result.exit_code, "exists" in result.stderr) == (1, True)
    result = cli("data", "scenes", "--n", 1, "--folder", folder)
    assert (result.exit_code, "000000.png exists and holds another picture" in result.stderr) == (1, True)
    assert sheet.read_bytes() == (folder / "000000.png").read_bytes() == b"mine"
    assert cli("data", "scenes", "--n", 1, "--folder", folder, "--overwrite").exit_code == 0
    result = cli("data", "scenes", "--n", 1, "--folder", folder)
    assert (result.exit_code, "metadata.jsonl exists" in result.stderr) == (1, True)


@pytest.mark.parametrize("options", [(), ("-o", "sheet.png", "--folder", "scenes")])
def test_one_output_must_be_named(cli, options):
    result = cli("data", "scenes", *options)
    assert result.exit_code == 2
    assert "either -o/--output for a contact sheet or --folder" in result.stderr


def test_other_suffixes(cli, tmp_path):
    result = cli("data", "scenes", "--n", 1, "-o", tmp_path / "sheet.txt")
    assert result.exit_code == 2
    assert "sheet.txt must end in .png" in result.stderr
