"""A task of a few numbers, for tests of the training loop: ``tiny_task.py PORT RANK FOLDER`` trains it as one of two
processes."""

import os
import sys
from pathlib import Path


if __name__ == "__main__":
    port, rank, folder = sys.argv[1:]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "ACCELERATE_USE_CPU": "true"}
    os.environ |= {"RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": "1"}

import torch
from accelerate import Accelerator
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from privgen.training.loop import LoopOptions, Task, fit, sample_generator


OPTIONS = LoopOptions(
    steps=12, batch_size=6, learning_rate=0.02, warmup=3, ema_decay=0.9, log_every=2, preview_every=5, seed=3
)


class Killed(BaseException):
    """Stands for a process that was killed: nobody catches it."""


class TinyTask(Task):
    """Learns to blur; the kernel has the memory layout that real models have."""

    def __init__(self, seed=OPTIONS.seed, kill_at=None):
        super().__init__()
        self.seed, self.kill_at = seed, kill_at
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.out = nn.Conv2d(4, 3, 3, padding=1)
        for number, parameter in enumerate(self.parameters()):
            parameter.data = torch.randn(parameter.shape, generator=sample_generator(seed, -1 - number)) / 4
        self.to(memory_format=torch.channels_last)

    def batch(self, indices):
        if self.kill_at is not None and max(indices) >= self.kill_at * OPTIONS.batch_size:
            raise Killed
        x = torch.stack([torch.rand(3, 8, 8, generator=sample_generator(self.seed, i)) for i in indices])
        return {"x": x.to(memory_format=torch.channels_last)}

    def forward(self, batch):
        x = batch["x"]
        error = self.out(torch.tanh(self.conv(x))) - nn.functional.avg_pool2d(x, 3, stride=1, padding=1)
        return {"loss": error.square().mean(), "bias": self.out.bias.abs().sum()}

    def preview(self):
        return Image.new("RGB", (4, 4))

    def export(self, folder):
        folder.mkdir(exist_ok=True)
        save_file({n: p.detach().contiguous() for n, p in self.named_parameters()}, folder / "tiny.safetensors")


if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    fit(TinyTask(), OPTIONS, Path(folder), accelerator=accelerator)
    accelerator.end_training()
