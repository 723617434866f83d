import json

import pytest
from PIL import Image

from privgen.errors import PrivgenError
from privgen.training.loss_curve import draw_loss_curve, read_curve


@pytest.fixture
def curve(tmp_path):
    path = tmp_path / "loss.jsonl"
    rows = [{"step": s, "loss": 1 / s, "psnr_db": 20 + s, "bad": float("nan")} for s in range(1, 60)]
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def test_reading(curve):
    with curve.open("a") as file:
        file.write('{"step": 60, "lo')
    curves = read_curve(curve)
    assert curves.keys() == {"loss", "psnr_db"}
    assert curves["loss"][:2] == [(1, 1.0), (2, 0.5)]
    assert len(curves["loss"]) == 59


def test_drawing(curve, tmp_path):
    pictures = [tmp_path / "one.png", tmp_path / "other.png"]
    for path in (*pictures, pictures[0]):
        draw_loss_curve(curve, path)
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    with Image.open(pictures[0]) as image:
        assert image.width > 600
        assert len(image.convert("RGB").getcolors(1 << 20)) > 20


def test_a_single_point_is_visible(tmp_path):
    (tmp_path / "loss.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    draw_loss_curve(tmp_path / "loss.jsonl", tmp_path / "loss.png")
    assert (tmp_path / "loss.png").stat().st_size > 0


@pytest.mark.parametrize("text", ['{"loss": 1}\n', "loss\n", "[1]\n", "\n"])
def test_other_files(text, tmp_path):
    (tmp_path / "loss.jsonl").write_text(text)
    with pytest.raises(PrivgenError, match=r"loss.jsonl, line 1, is not from a loss curve"):
        read_curve(tmp_path / "loss.jsonl")


def test_missing_and_empty(tmp_path):
    with pytest.raises(PrivgenError, match="cannot be read: No such file"):
        draw_loss_curve(tmp_path / "loss.jsonl", tmp_path / "loss.png")
    (tmp_path / "loss.jsonl").write_text("")
    with pytest.raises(PrivgenError, match="holds no numbers yet"):
        draw_loss_curve(tmp_path / "loss.jsonl", tmp_path / "loss.png")
