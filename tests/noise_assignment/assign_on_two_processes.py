"""One of two processes of a distributed assignment: ``assign_on_two_processes.py PORT RANK OUTPUT``."""

import json
import os
import sys
from pathlib import Path


port, rank, output = sys.argv[1:]
os.environ |= {
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": port,
    "RANK": rank,
    "LOCAL_RANK": rank,
    "WORLD_SIZE": "2",
    "ACCELERATE_USE_CPU": "true",
    "OMP_NUM_THREADS": "1",
}

import torch  # noqa: E402
from accelerate import Accelerator  # noqa: E402

from privgen.noise_assignment.distributed import assign_noise_distributed  # noqa: E402


def message(*args, **kwargs):
    try:
        assign_noise_distributed(accelerator, *args, **kwargs)
    except ValueError as error:
        return str(error)
    return "no error"


accelerator = Accelerator(cpu=True)
generator = torch.Generator().manual_seed(0)
x_0, eps = torch.randn(2, 24, 3, 4, 4, generator=generator)
condition = torch.randn(24, 5, generator=generator)
labels = torch.arange(24) % 3

mine = slice(12 * int(rank), 12 * int(rank) + 12)
x, e, classes = x_0[mine], eps[mine], labels[mine]
captions = [f"class {label}" for label in classes.tolist()]
results = {
    "global": assign_noise_distributed(accelerator, x, e, method="linear"),
    "auto": assign_noise_distributed(accelerator, x, e),
    "auction": assign_noise_distributed(accelerator, x, e, method="auction"),
    "local": assign_noise_distributed(accelerator, x, e, method="linear", scope="local"),
    "labels": assign_noise_distributed(accelerator, x, e, method="linear", labels=classes),
    "captions": assign_noise_distributed(accelerator, x, e, method="linear", labels=captions),
    "condition": assign_noise_distributed(accelerator, x, e, method="linear", condition=condition[mine]),
    "bfloat16": assign_noise_distributed(accelerator, x.bfloat16(), e.bfloat16(), method="linear"),
    "knn": assign_noise_distributed(accelerator, x, torch.stack([e, -e], dim=1), method="knn"),
}
bad = x.clone()
bad[int(rank) :] = torch.nan if rank == "1" else x[0]
errors = {
    "uneven": message(x[: 12 - int(rank)], e[: 12 - int(rank)], method="linear"),
    "nan": message(bad, e, method="linear"),
}
tensors = {name: noise.flatten().tolist() for name, noise in results.items()}
Path(output).write_text(json.dumps({"results": tensors, "errors": errors}))
accelerator.end_training()
