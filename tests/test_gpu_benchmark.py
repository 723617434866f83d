"""The benchmark of the GPU, tried on the CPU, so that its code is known to run where there is a GPU."""

import importlib.util
import json
import sys

import pytest
import torch
from click.testing import CliRunner


@pytest.fixture(scope="module")
def gpu(root):
    spec = importlib.util.spec_from_file_location("gpu_benchmark", root / "benchmarks" / "gpu.py")
    module = sys.modules["gpu_benchmark"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules["gpu_benchmark"]


@pytest.mark.slow
def test_all_of_it_runs_in_small_and_writes_a_record(gpu, tmp_path):
    result = CliRunner().invoke(gpu.main, ["--tiny", "--device", "cpu", "--json", str(tmp_path / "gpu.json")])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "gpu.json").read_text())
    assert all(record["checks"].values())
    assert sum("bfloat16" in name for name in record["checks"]) >= 12
    for name in ("stable-diffusion-1.5", "sdxl"):
        assert record["figures"][f"{name}, both: time_ratio"] > 0
    assert record["figures"]["stable-diffusion-1.5, robust-steps: time_ratio"] > 1
    assert record["left_out"] == ["sdxl, robust-steps: for Stable Diffusion 1 and 2 only"]


def test_a_failed_check_and_the_end_of_the_time_are_told(gpu, capsys):
    run = gpu.Run(torch.device("cpu"), True, end=float("inf"))
    run.attempt("part", lambda: torch.zeros(2) @ torch.zeros(3))
    assert [*run.checks.values()] == [False]
    run.end = 0.0
    run.attempt("late", lambda: pytest.fail("it ran"))
    assert run.left_out == ["late"]
    assert "FAIL part (RuntimeError" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(gpu):
    result = CliRunner().invoke(gpu.main, [])
    assert result.exit_code == 1
    assert "no GPU here" in result.output
