"""Checkpoints of a training run: all that is needed to go on where it stopped."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from privgen.errors import PrivgenError


CHECKPOINT = "checkpoint"
"""Name of a checkpoint's folder in that of its run."""

_OLD = "checkpoint.old"  # the one before, while a new one takes its place


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A training run after some step.

    Attributes:
        step: number of optimiser steps made.
        parameters: trained parameters by name, and what else the task keeps, see `Task.state`.
        averaged: their moving average, by the same names.
        optimizer: state of the optimiser, for each parameter by its place in `parameters`.
        ema_steps: number of steps that the average has seen.
        sums: sums of the logged scalars since the last line of the loss curve.
    """

    step: int
    parameters: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor]
    optimizer: Mapping[int, Mapping[str, Tensor]]
    ema_steps: int
    sums: Mapping[str, float]


def find_checkpoint(run: Path) -> Path | None:
    """The folder of a run's newest complete checkpoint; None before the first."""
    # If the run was killed between the two renames in `save_checkpoint`, only the old one is there.
    return next((folder for folder in (run / CHECKPOINT, run / _OLD) if folder.exists()), None)


def save_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint of a run. A complete one is there at any time, whenever the process is killed.

    Args:
        run: folder of the run.
        checkpoint: what to save.
    """
    fresh, kept, old = run / "checkpoint.new", run / CHECKPOINT, run / _OLD
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    save_file({n: p.detach().contiguous() for n, p in checkpoint.parameters.items()}, fresh / "model.safetensors")
    save_file({n: p.contiguous() for n, p in checkpoint.averaged.items()}, fresh / "ema.safetensors")
    moments = {f"{i}.{n}": v.contiguous() for i, state in checkpoint.optimizer.items() for n, v in state.items()}
    save_file(moments, fresh / "optimizer.safetensors")
    state = {"step": checkpoint.step, "ema_steps": checkpoint.ema_steps, "sums": checkpoint.sums}
    (fresh / "state.json").write_text(json.dumps(state))
    if kept.exists():
        shutil.rmtree(old, ignore_errors=True)
        kept.rename(old)
    # Not before: if an earlier run was killed between these renames, the old checkpoint was the only one.
    fresh.rename(kept)
    shutil.rmtree(old, ignore_errors=True)


def load_checkpoint(run: Path, parameters: Mapping[str, nn.Parameter]) -> Checkpoint | None:
    """Load the newest checkpoint of a run; None if it has none.

    Args:
        run: folder of the run.
        parameters: the trained parameters, in the order in which the optimiser has them.
    """
    folder = find_checkpoint(run)
    if folder is None:
        return None
    state = json.loads((folder / "state.json").read_text())
    likes = list(parameters.values())
    optimizer: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        number, name = key.split(".", 1)
        like = likes[int(number)]
        # Moments get the memory layout of their parameter, as in a run that was not interrupted.
        moment = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
        optimizer.setdefault(int(number), {})[name] = moment.detach()
    return Checkpoint(
        step=state["step"],
        parameters=load_file(folder / "model.safetensors"),
        averaged=load_file(folder / "ema.safetensors"),
        optimizer=optimizer,
        ema_steps=state["ema_steps"],
        sums=state["sums"],
    )


def read_step(run: Path) -> int:
    """The number of optimiser steps that a run has made at its newest checkpoint.

    Raises:
        PrivgenError: the run has no checkpoint.
    """
    return int(json.loads((_newest(run) / "state.json").read_text())["step"])


@torch.no_grad()
def load_average(task: nn.Module, run: Path) -> int:
    """Give a task the averaged parameters of a run's newest checkpoint.

    Args:
        task: made from the recipe of the run.
        run: folder of the run.

    Returns:
        The number of optimiser steps that the run had made.

    Raises:
        PrivgenError: there is no checkpoint, or it belongs to another recipe.
    """
    parameters = {n: p for n, p in task.named_parameters() if p.requires_grad}
    averaged = load_file(_newest(run) / "ema.safetensors")
    if {n: p.shape for n, p in parameters.items()} != {n: p.shape for n, p in averaged.items()}:
        raise PrivgenError(f"The checkpoint of {run} belongs to another recipe; name the one that it was trained by.")
    for name, parameter in parameters.items():
        parameter.copy_(averaged[name])
    return read_step(run)


def _newest(run: Path) -> Path:
    folder = find_checkpoint(run)
    if folder is None:
        raise PrivgenError(f"The run {run} has no checkpoint yet; let it train for longer.")
    return folder
