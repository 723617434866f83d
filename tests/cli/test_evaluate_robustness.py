import json

import pytest


@pytest.fixture
def options(marked_model):
    """A tiny model and little work."""
    small = ("--n", 3, "--steps", 2, "--batch-size", 2, "--seed", 3, "--attack", "jpeg", "--attack", "noise")
    return ("--model", marked_model, "--device", "cpu", *small)


def test_robustness(cli, options, tmp_path):
    chosen = (*options, "--method", "latent", "-o", tmp_path / "results")
    result = cli("evaluate", "robustness", *chosen, "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["n"], record["seed"], record["preset"], record["carrier"]) == (3, 3, "quick", "latent")
    assert record["attacks"].keys() == {"jpeg_50", "noise_0_05"}
    assert record["baselines"] == {}
    assert record == json.loads((tmp_path / "results" / "results.json").read_text())
    assert (tmp_path / "results" / "robustness.html").is_file()
    again = cli("evaluate", "robustness", *chosen)
    assert again.exit_code == 1
    assert "results.json exists" in again.stderr
    text = cli("evaluate", "robustness", *chosen, "--overwrite")
    assert text.exit_code == 0, text.output
    assert "lead over best baseline" in text.stdout
    assert json.loads((tmp_path / "results" / "results.json").read_text()) == record


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--attack", "jpg"), "--attack jpg is not among those of the preset quick; choose from all, blur"),
        (("--method", "dwtDct", "--no-baselines"), "No method is left to measure"),
        (("--method", "dwtDct"), "use larger images, or fewer bits"),
        (("--method", "stegastamp"), "is not one of 'token', 'latent', 'privgen', 'dwtDct'"),
        (("--preset", "slow"), "is not one of 'quick', 'standard'"),
        (("--n", 1), "1 is not in the range"),
    ],
)
def test_bad_input(cli, marked_model, wrong, message):
    result = cli("evaluate", "robustness", "--model", marked_model, "--device", "cpu", *wrong)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(options, tmp_path, launch):
    command = ("evaluate", "robustness", *options, "--no-baselines", "--json", "-o")
    one, two = (launch(count, *command, tmp_path / str(count)) for count in (1, 2))
    assert json.loads(one[0]) == json.loads(two[0])
    assert two[1] == ""  # the second process prints nothing
    assert (tmp_path / "2" / "robustness-1.jsonl").is_file()
    assert json.loads((tmp_path / "2" / "results.json").read_text()) == json.loads(one[0])


def test_photographs(cli, marked_model, photos, tmp_path):
    chosen = ("--model", marked_model, "--device", "cpu", "--images", photos, "--no-search", "--no-baselines")
    few = (*chosen, "--n", 2, "--negatives", 1, "--no-seconds", "--attack", "jpeg=50", "--attack", "crop=0.5,size=own")
    result = cli("evaluate", "robustness", *few, "-o", tmp_path / "results", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["preset"], record["n"], record["images"]) == ("photographs", 2, str(photos))
    assert record["attacks"].keys() == {"jpeg_50", "crop_0_5_size_own"}
    assert record == json.loads((tmp_path / "results" / "results.json").read_text())
    assert (tmp_path / "results" / "robustness.html").is_file()
    text = cli("evaluate", "robustness", *few)
    assert text.exit_code == 0, text.output
    assert "visible de p99" in text.stdout
    assert text.stdout.splitlines()[-1].startswith("crop_0_5_size_own")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--preset", "photographs", "--steps", 3), "--steps does not go with --preset photographs"),
        (("--preset", "quick", "--images", "."), "--images does not go with --preset quick"),
        (("--carrier", "latent"), "--carrier does not go with --preset quick"),
        (("--preset", "photographs", "--method", "latent"), "No method of photographs is called 'latent'"),
        (("--images", "nowhere"), "--images nowhere is not a folder"),
        (("--preset", "photographs", "--carrier", "ink"), "'ink' is not one of 'tile', 'token'"),
    ],
)
def test_wrong_calls_for_photographs(cli, marked_model, wrong, message):
    result = cli("evaluate", "robustness", "--model", marked_model, "--device", "cpu", "--no-baselines", *wrong)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.slow
def test_two_processes_share_photographs(marked_model, photos, tmp_path, launch):
    chosen = ("--model", marked_model, "--device", "cpu", "--images", photos, "--no-search", "--no-baselines")
    command = ("evaluate", "robustness", *chosen, "--attack", "jpeg=50", "--no-seconds", "--json", "-o")
    one, two = (launch(count, *command, tmp_path / str(count)) for count in (1, 2))
    assert json.loads(one[0]) == json.loads(two[0])
    assert two[1] == ""
    assert (tmp_path / "2" / "robustness-1.jsonl").is_file()
