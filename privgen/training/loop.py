"""The training loop that every model of this package is trained by.

A run is a function of its recipe and seed: sample `i` of a run is drawn from `(seed, i)` alone, whatever
the number of processes and however often the run was interrupted. A run that was killed goes on from its last
checkpoint and ends with the weights of an uninterrupted one.
"""

import json
import math
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from privgen.errors import PrivgenError
from privgen.io.files import write_text
from privgen.training.muon import Muon


Batch = dict[str, Tensor]


@dataclass(frozen=True)
class LoopOptions:
    """How long and how fast to learn.

    Attributes:
        steps: optimiser steps of the whole run.
        batch_size: samples a step, over all processes.
        learning_rate: peak of the schedule: linear warm-up, the peak, then a half cosine down to zero.
        warmup: steps of warm-up.
        decay_from: share of the steps after the warm-up at which the decay begins.
        weight_decay: decoupled, of matrices and kernels.
        grad_clip: largest gradient norm.
        ema_decay: decay of the exponential moving average that is exported.
        seed: of the whole run.
        checkpoint_minutes: time between checkpoints.
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
        """Learning rate of a step, counted from 0."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        done = (step - self.warmup) / max(self.steps - self.warmup, 1)
        decayed = max(done - self.decay_from, 0.0) / (1 - self.decay_from)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(decayed, 1.0)))


class Task(nn.Module, ABC):
    """What is learned: the modules to train, their data and their loss."""

    @abstractmethod
    def batch(self, indices: list[int]) -> Batch:
        """Draw the samples with these numbers, and all randomness that their loss needs, on the CPU."""

    @abstractmethod
    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Scalars to log; "loss" is minimised."""

    @abstractmethod
    def preview(self) -> Image.Image:
        """A picture of what has been learnt so far."""

    @abstractmethod
    def export(self, folder: Path) -> None:
        """Save the model in the form in which it is used."""


def sample_generator(seed: int, index: int) -> torch.Generator:
    """The randomness of one sample of a run."""
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
    """Train, or go on training, and export the averaged weights to `folder / "model"`.

    Args:
        task: what to learn; its trainable parameters are those that require a gradient.
        options: how long and how fast.
        folder: checkpoint, loss curve, previews and result are kept here.
        accelerator: devices, processes and precision.
        stop_at: stop (with a checkpoint) after this step of the schedule; None runs it to its end.
        on_save: called in the main process after every checkpoint.

    Returns:
        The task, holding the averaged weights.

    Raises:
        PrivgenError: a gradient is not finite; the last checkpoint is left as it is.
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


def find_checkpoint(folder: Path) -> Path | None:
    """The newest complete checkpoint of a run; None before the first."""
    # A kill between the two renames of `_Run.save` leaves only the old one.
    return next((f for f in (folder / "checkpoint", folder / "checkpoint.old") if f.exists()), None)


@torch.no_grad()
def load_average(task: Task, folder: Path) -> int:
    """Give a task the averaged weights of a run's checkpoint.

    Args:
        task: of the run's recipe.
        folder: of the run.

    Returns:
        Optimiser steps that they have seen.

    Raises:
        PrivgenError: there is no checkpoint, or it is of another recipe.
    """
    kept = find_checkpoint(folder)
    if kept is None:
        raise PrivgenError(f"The run {folder} has no checkpoint yet; let it train for longer.")
    parameters = {n: p for n, p in task.named_parameters() if p.requires_grad}
    averaged = load_file(kept / "ema.safetensors")
    if {n: p.shape for n, p in parameters.items()} != {n: p.shape for n, p in averaged.items()}:
        raise PrivgenError(f"The checkpoint of {folder} is of another recipe; name the one that it was trained by.")
    for name, parameter in parameters.items():
        parameter.copy_(averaged[name])
    return int(json.loads((kept / "state.json").read_text())["step"])


class _Run:
    """One run's moving parts."""

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

    # Learning

    def progress(self, last: int) -> Iterator[int]:
        quiet = not self.accelerator.is_main_process
        with tqdm(total=last, initial=self.step, unit="step", disable=quiet, mininterval=2, dynamic_ncols=True) as bar:
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
        # Where gradients are scaled for half precision, infinite ones are passed over by the scaler.
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
            with self._path("loss.jsonl").open("a") as file:
                file.write(json.dumps({"step": self.step, **row}) + "\n")

    # Keeping

    def _path(self, name: str) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def is_checkpoint_due(self) -> bool:
        return time.monotonic() - self.saved_at > 60 * self.options.checkpoint_minutes

    def save(self) -> None:
        self.saved_at = time.monotonic()
        if not self.accelerator.is_main_process:
            return
        fresh, kept, old = self._path("checkpoint.new"), self._path("checkpoint"), self._path("checkpoint.old")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        save_file({n: p.detach().contiguous() for n, p in self.parameters.items()}, fresh / "model.safetensors")
        averaged = {n: p.contiguous() for n, p in zip(self.parameters, self.ema.shadow_params, strict=True)}
        save_file(averaged, fresh / "ema.safetensors")
        save_file(_flatten(self.optimizer.state_dict()["state"]), fresh / "optimizer.safetensors")
        state = {"step": self.step, "ema_steps": self.ema.optimization_step, "sums": self.sums}
        (fresh / "state.json").write_text(json.dumps(state))
        if kept.exists():
            shutil.rmtree(old, ignore_errors=True)
            kept.rename(old)
        # Until now, a folder called old is the only checkpoint if an earlier run was killed between these renames.
        fresh.rename(kept)
        shutil.rmtree(old, ignore_errors=True)

    def resume(self) -> None:
        folder = find_checkpoint(self.folder)
        if folder is None:
            return
        state = json.loads((folder / "state.json").read_text())
        self.step, self.sums, self.ema.optimization_step = state["step"], state["sums"], state["ema_steps"]
        saved, averaged = load_file(folder / "model.safetensors"), load_file(folder / "ema.safetensors")
        with torch.no_grad():
            for (name, parameter), shadow in zip(self.parameters.items(), self.ema.shadow_params, strict=True):
                parameter.copy_(saved[name])
                shadow.copy_(averaged[name])
        optimizer = self.optimizer.state_dict()
        optimizer["state"] = _unflatten(load_file(folder / "optimizer.safetensors"), list(self.parameters.values()))
        self.optimizer.load_state_dict(optimizer)
        self._forget_after(self.step)

    def _forget_after(self, step: int) -> None:
        """Drop the lines of the loss curve that will be written again."""
        curve = self.folder / "loss.jsonl"
        if self.accelerator.is_main_process and curve.exists():
            # What follows the last line break was being written when the run was killed.
            rows = [line for line in curve.read_text().split("\n")[:-1] if json.loads(line)["step"] <= step]
            write_text(curve, "".join(f"{row}\n" for row in rows), overwrite=True)

    # Showing

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
        picture.save(self.folder / "previews" / f"{step:07d}.png")

    def export(self) -> None:
        self.ema.copy_to(self.parameters.values())
        if self.accelerator.is_main_process:
            self.task.export(self._path("model"))
        self.accelerator.wait_for_everyone()


def _flatten(state: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{i}.{name}": value.contiguous() for i, entry in state.items() for name, value in entry.items()}


def _unflatten(tensors: dict[str, Tensor], parameters: list[nn.Parameter]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        like = parameters[int(index)]
        # Moments in the memory layout of their parameter, as the optimiser would have made them.
        kept = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        state.setdefault(int(index), {})[name] = kept.detach()
    return state
