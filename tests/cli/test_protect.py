import json

import pytest
from PIL import Image


@pytest.fixture
def protect(cli, workshop):
    return lambda *more: cli("protect", "photos", "-o", "out", "--method", "noise", *more)


def test_files_are_protected_and_reported(protect, workshop):
    result = protect("--psnr", 34, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["method"], record["done"], record["failed"]) == ("Noise()", 2, 0)
    for file in record["files"]:
        assert file["psnr"] == pytest.approx(34, abs=0.1)
        assert 0 < file["ssim"] < 1
        assert file["visible_de_p99"] > 0
        assert file["seconds"] > 0
    with Image.open(workshop / "photos" / "a.png") as before, Image.open(workshop / "out" / "a.png") as after:
        assert before.size == after.size


def test_people_read_the_figures_and_a_rerun_skips(protect):
    first = protect()
    assert "a.png: PSNR 36.0 dB, SSIM 0." in first.stderr
    again = protect()
    assert again.exit_code == 0
    assert "skipped  2" in again.stdout


def test_a_bad_file_is_named(cli, workshop):
    result = cli("protect", "photos", "bad.png", "-o", "out", "--method", "noise")
    assert result.exit_code == 1
    assert "Error: bad.png" in result.stderr
    assert "done     2" in result.stdout


def test_the_first_line_of_its_help_says_what_it_does_not_do(cli):
    text = " ".join(cli("protect", "--help").stdout.split())
    assert text.index("does not stop a patient LoRA") < text.index("The images change faintly")


def test_a_check_that_cannot_be_made_stops_before_the_work(protect, workshop):
    result = protect("--check")
    assert result.exit_code == 2
    assert "--check needs at least 3 images" in result.stderr
    assert not (workshop / "out").exists()
