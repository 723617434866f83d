import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from privgen.noise_assignment.assign import assign_noise
from privgen.noise_assignment.distributed import assign_noise_distributed


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """What both processes wrote, in order of their rank."""
    folder = tmp_path_factory.mktemp("processes")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    script = Path(__file__).with_name("assign_on_two_processes.py")
    outputs = [folder / f"{rank}.json" for rank in (0, 1)]
    processes = [
        subprocess.Popen([sys.executable, script, port, str(rank), output], stderr=subprocess.PIPE, text=True)
        for rank, output in enumerate(outputs)
    ]
    try:
        errors = [process.communicate(timeout=600)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)
    return [json.loads(output.read_text(encoding="utf-8")) for output in outputs]


@pytest.fixture(scope="module")
def whole_batch():
    x_0, eps = torch.randn(2, 24, 3, 4, 4, generator=seeded())
    return {"x_0": x_0, "eps": eps, "labels": torch.arange(24) % 3}


@pytest.mark.parametrize("name", ["global", "auto", "auction", "labels", "captions", "condition", "bfloat16"])
def test_two_processes_assign_as_one(name, two_processes, whole_batch):
    x_0, eps = whole_batch["x_0"], whole_batch["eps"]
    options = {}
    if name in ("labels", "captions"):
        options["labels"] = whole_batch["labels"]
    if name == "condition":
        generator = seeded()
        torch.randn(2, 24, 3, 4, 4, generator=generator)
        options["condition"] = torch.randn(24, 5, generator=generator)
    if name == "bfloat16":
        x_0, eps = x_0.bfloat16(), eps.bfloat16()
    method = "auction" if name == "auction" else "linear"
    expected = assign_noise(x_0, eps, method=method, **options)
    halves = [torch.tensor(process["results"][name]).to(eps.dtype) for process in two_processes]
    assert torch.equal(torch.cat(halves).view_as(eps), expected)


def test_a_process_can_assign_for_itself(two_processes, whole_batch):
    for process, x_0, eps in zip(two_processes, whole_batch["x_0"].chunk(2), whole_batch["eps"].chunk(2), strict=True):
        local, nearest = (torch.tensor(process["results"][name]).view_as(eps) for name in ("local", "knn"))
        assert torch.equal(local, assign_noise(x_0, eps, method="linear"))
        assert torch.equal(nearest, assign_noise(x_0, torch.stack([eps, -eps], dim=1), method="knn"))


def test_both_processes_fail_together(two_processes):
    for process in two_processes:
        assert re.search(r"expected the same batch size on every process, got \[12, 11\]", process["errors"]["uneven"])
    assert "expected finite x_0, got NaN or infinity" in two_processes[0]["errors"]["nan"]
    assert "main process" in two_processes[1]["errors"]["nan"]


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_single_process_needs_no_other(accelerator, whole_batch):
    x_0, eps = whole_batch["x_0"], whole_batch["eps"]
    noise = assign_noise_distributed(accelerator, x_0, eps, method="linear")
    assert torch.equal(noise, assign_noise(x_0, eps, method="linear"))
    with pytest.raises(ValueError, match="expected scope 'global' or 'local', got 'node'"):
        assign_noise_distributed(accelerator, x_0, eps, scope="node")
