"""The training loop of all models in this package.

A run is a function of its recipe and its seed. Sample `i` is drawn from `(seed, i)` alone, whatever the number of
processes and however often the run was interrupted. A run that was killed goes on from its last checkpoint, and ends
with the weights of a run that was not interrupted.
"""

import json
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor, nn

from privgen.data.sheets import save_picture
from privgen.errors import PrivgenError
from privgen.io.files import write_text
from privgen.io.journal import Journal
from privgen.io.progress import Bar
from privgen.training.checkpoints import Checkpoint, load_checkpoint, save_checkpoint
from privgen.training.muon import Muon


LOSSES = "loss.jsonl"
"""Name of the loss curve's file in the folder of a run."""

Batch = dict[str, Tensor]
"""The samples of a step, by name."""


@dataclass(frozen=True)
class LoopOptions:
    """How long to train, and how fast.

    Attributes:
        steps: optimiser steps of the whole run.
        batch_size: samples in a step, over all processes together.
        learning_rate: the highest one. The rate rises linearly, stays, and then falls to zero by half a cosine.
        warmup: steps in which the rate rises.
        decay_from: fraction of the steps after the warm-up at which the rate begins to fall.
        weight_decay: decoupled weight decay of matrices and convolution kernels.
        grad_clip: largest norm of the gradient; larger gradients are scaled down to it.
        ema_decay: decay of the exponential moving average of the weights, which is exported.
        seed: of the whole run.
        checkpoint_minutes: time between checkpoints; 0 saves one after each step.
        log_every: steps between lines of the loss curve.
        preview_every: steps between preview pictures.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 200
    decay_from: float = 0.0
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    checkpoint_minutes: float = 3.0
    log_every: int = 50
    preview_every: int = 1000

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        decayed = max(done - self.decay_from, 0.0) / (1 - self.decay_from)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(decayed, 1.0)))


class Task(nn.Module, ABC):
    """What is trained: networks, their data and their loss."""

    @abstractmethod
    def batch(self, indices: list[int]) -> Batch:
        """Draw the samples with these numbers, and all random numbers that their loss needs, on the CPU."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Compute scalars. All are logged, and "loss" is minimised."""

    def state(self) -> dict[str, Tensor]:
        """Tensors that `forward` changes in place, by name. Checkpoints keep them beside the trained parameters."""
        return {}

    @abstractmethod
    def preview(self) -> Image.Image:
        """Draw a picture that shows what has been learnt so far."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Save the model in the form in which it is used."""


def sample_generator(seed: int, index: int) -> torch.Generator:
    """The generator of all random numbers of one sample of a run."""
    return torch.Generator().manual_seed((seed * 1_000_003 + index) % 2**63)


def fit(
    task: Task,
    options: LoopOptions,
    folder: Path,
    *,
    accelerator: Accelerator,
    stop_at: int | None = None,
    on_save: Callable[[], None] | None = None,
) -> Task:
    """Start a run, or go on with it, and export the averaged weights to `folder / "model"`.

    Args:
        task: what to train. The parameters that require a gradient are trained.
        options: how long and how fast.
        folder: of the run; it gets the checkpoint, the loss curve, the previews and the model.
        accelerator: says on which devices, in how many processes and how precisely to compute.
        stop_at: stop after this step and save a checkpoint; None trains to the end.
        on_save: called in the main process after each checkpoint.

    Returns:
        The task, with the averaged weights.

    Raises:
        PrivgenError: a gradient is not finite. The last checkpoint stays as it is.
    """
    run = _Run(task, options, folder, accelerator)
    run.resume()
    last = options.steps if stop_at is None else min(stop_at, options.steps)
    for step in run.progress(last):
        run.learn(step)
        if run.is_checkpoint_due() or step + 1 == last:
            run.save()
            if on_save is not None and accelerator.is_main_process:
                on_save()
        if (step + 1) % options.preview_every == 0 or step + 1 == last:
            run.show(step + 1)
    run.export()
    return task


class _Run:
    """A run in progress: the task, its optimiser and the moving average of its weights."""

    def __init__(self, task: Task, options: LoopOptions, folder: Path, accelerator: Accelerator) -> None:
        self.task, self.options, self.folder, self.accelerator = task, options, folder, accelerator
        self.parameters = {n: p for n, p in task.named_parameters() if p.requires_grad}
        optimizer = Muon(self.parameters.values(), lr=options.learning_rate, weight_decay=options.weight_decay)
        self.network, self.optimizer = accelerator.prepare(task, optimizer)
        self.ema = EMAModel(self.parameters.values(), decay=options.ema_decay, foreach=True)
        self.ema.to(accelerator.device)
        self.step = 0
        self.saved_at = time.monotonic()
        self.sums: dict[str, float] = {}
        self.curve = Journal(folder / LOSSES)

    def progress(self, last: int) -> Iterator[int]:
        quiet = not self.accelerator.is_main_process
        with Bar(total=last, initial=self.step, unit="step", disable=quiet, mininterval=2, dynamic_ncols=True) as bar:
            self.bar = bar
            for step in range(self.step, last):
                yield step
                bar.update()

    def learn(self, step: int) -> None:
        options, accelerator = self.options, self.accelerator
        first = step * options.batch_size
        indices = range(first, first + options.batch_size)[accelerator.process_index :: accelerator.num_processes]
        batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in self.task.batch(list(indices)).items()}
        for group in self.optimizer.param_groups:
            group["lr"] = options.rate(step)
        scalars = self.network(batch)
        accelerator.backward(scalars["loss"])
        scalars["grad_norm"] = accelerator.clip_grad_norm_(self.parameters.values(), options.grad_clip)
        # In half precision a scaler skips steps whose gradient is not finite.
        if accelerator.scaler is None and not math.isfinite(float(scalars["grad_norm"])):
            raise PrivgenError(
                f"The gradient is not finite at step {step + 1} (loss {float(scalars['loss'].detach()):g}); lower "
                "loop.learning_rate, or look at the data."
            )
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.step(self.parameters.values())
        self.step = step + 1
        self._log(scalars)

    def _log(self, scalars: dict[str, Tensor]) -> None:
        for name, value in scalars.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
        if self.step % self.options.log_every:
            return
        row = {name: round(total / self.options.log_every, 6) for name, total in self.sums.items()}
        self.sums = {}
        if self.accelerator.is_main_process:
            self.bar.set_postfix(loss=f"{row['loss']:.4f}")
            self.curve.append([{"step": self.step, **row}])

    def _path(self, name: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def is_checkpoint_due(self) -> bool:
        return time.monotonic() - self.saved_at >= 60 * self.options.checkpoint_minutes

    def save(self) -> None:
        self.saved_at = time.monotonic()
        if not self.accelerator.is_main_process:
            return
        averaged = dict(zip(self.parameters, self.ema.shadow_params, strict=True))
        optimizer = self.optimizer.state_dict()["state"]
        steps = self.ema.optimization_step
        kept = {**self.parameters, **self.task.state()}
        save_checkpoint(self.folder, Checkpoint(self.step, kept, averaged, optimizer, steps, self.sums))

    def resume(self) -> None:
        saved = load_checkpoint(self.folder, self.parameters)
        if saved is None:
            return
        self.step, self.sums, self.ema.optimization_step = saved.step, dict(saved.sums), saved.ema_steps
        with torch.no_grad():
            for (name, parameter), shadow in zip(self.parameters.items(), self.ema.shadow_params, strict=True):
                parameter.copy_(saved.parameters[name])
                shadow.copy_(saved.averaged[name])
            for name, tensor in self.task.state().items():
                tensor.copy_(saved.parameters[name])
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": saved.optimizer})
        self._forget_after(self.step)

    def _forget_after(self, step: int) -> None:
        """Drop the lines of the loss curve that will be written again."""
        if self.accelerator.is_main_process and (self.folder / LOSSES).exists():
            kept = [row for row in self.curve.read(dict) if row["step"] <= step]
            text = "".join(f"{json.dumps(row)}\n" for row in kept)
            write_text(self.folder / LOSSES, text, overwrite=True)

    def show(self, step: int) -> None:
        if not self.accelerator.is_main_process:
            return
        self.ema.store(self.parameters.values())
        self.ema.copy_to(self.parameters.values())
        try:
            picture = self.task.preview()
        finally:
            self.ema.restore(self.parameters.values())
        self._path("previews").mkdir(exist_ok=True)
        save_picture(picture, self.folder / "previews" / f"{step:07d}.png", overwrite=True)

    def export(self) -> None:
        self.ema.copy_to(self.parameters.values())
        if self.accelerator.is_main_process:
            self.task.export(self._path("model"))
        self.accelerator.wait_for_everyone()
