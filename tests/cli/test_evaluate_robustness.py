import json
import os
import socket
import subprocess
import sys

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
    assert record["rivals"] == {}
    assert record == json.loads((tmp_path / "results" / "results.json").read_text())
    assert (tmp_path / "results" / "robustness.html").is_file()
    again = cli("evaluate", "robustness", *chosen)
    assert again.exit_code == 1
    assert "results.json exists" in again.stderr
    text = cli("evaluate", "robustness", *chosen, "--overwrite")
    assert text.exit_code == 0, text.output
    assert "lead over best rival" in text.stdout
    assert json.loads((tmp_path / "results" / "results.json").read_text()) == record


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (("--attack", "jpg"), "--attack jpg is not among those of the preset quick; choose from all, blur"),
        (("--method", "dwtDct", "--no-rivals"), "No method is left to measure"),
        (("--method", "dwtDct"), "use larger images, or fewer bits"),
        (("--method", "stegastamp"), "is not one of 'token', 'latent', 'dwtDct'"),
        (("--preset", "slow"), "is not one of 'quick', 'standard'"),
        (("--n", 1), "1 is not in the range"),
    ],
)
def test_bad_input(cli, marked_model, wrong, message):
    result = cli("evaluate", "robustness", "--model", marked_model, "--device", "cpu", *wrong)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.slow
def test_two_processes_give_the_figures_of_one(options, tmp_path):
    one, two = run(1, options, tmp_path), run(2, options, tmp_path)
    assert json.loads(one[0]) == json.loads(two[0])
    assert two[1] == ""  # the second process prints nothing
    assert (tmp_path / "2" / "robustness-1.jsonl").is_file()
    assert json.loads((tmp_path / "2" / "results.json").read_text()) == json.loads(one[0])


def run(count, options, folder):
    """What so many processes print, as `accelerate launch` and `torchrun` start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(count)}
    command = ("-m", "privgen", "evaluate", "robustness", *options, "--no-rivals", "-o", folder / str(count), "--json")
    started = []
    for rank in range(count):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen([sys.executable, *map(str, command)], env=os.environ | shared | own, **pipes))
    try:
        outputs = [process.communicate(timeout=600) for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [0] * count, "\n".join(error for _, error in outputs)
    return [output for output, _ in outputs]
