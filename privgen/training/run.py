"""Train a model from a recipe."""

import json
import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import InitProcessGroupKwargs

from privgen.errors import PrivgenError, UsageError
from privgen.hub import resolve_device
from privgen.io.files import write_text
from privgen.training.loop import fit, load_average
from privgen.training.loss_curve import draw_loss_curve, read_curve
from privgen.training.recipes import MakeDistortion, Recipe, differences, dump_recipe, load_recipe


RECIPE = "recipe.toml"
_PATIENCE = timedelta(hours=12)
_INPUTS = {
    "vae": ("autoencoder", "vae"),
    "model": ("text-to-image model", "diffusion"),
    "start": ("text-to-image model", "diffusion"),
    "latents": ("cache of scenes", "diffusion"),
    "networks": ("extractor with its patterns", "extractor"),
}
"""Field of a recipe: what it names, and the kind whose training makes that."""
_OTHER_INPUTS = {
    ("extractor", "start"): ("extractor with its patterns", "extractor"),
    ("aligner", "start"): ("extractor with its patterns", "extractor"),
    ("aligner", "model"): ("text-to-image model with a token mapper", "token"),
    ("extractor", "model"): ("text-to-image model with a token mapper", "token"),
}
"""The same for kinds whose field of that name is something else."""
_OPTIONAL = {("diffusion", "latents"), ("token", "latents"), ("mapper", "networks")}
"""Inputs that a kind makes itself or can do without."""


@dataclass(frozen=True)
class Training:
    """A run that has ended.

    Attributes:
        kind: of model.
        model: folder with the averaged weights, in the form in which they are used.
        step: optimiser steps made since the beginning.
        steps: optimiser steps of the whole schedule.
        loss: mean of the last logged steps, None if nothing was logged.
    """

    kind: str
    model: Path
    step: int
    steps: int
    loss: float | None


def train(
    recipe: Recipe,
    folder: str | os.PathLike[str],
    *,
    device: str = "auto",
    stop_at: int | None = None,
    distortion: MakeDistortion | None = None,
) -> Training:
    """Train a model, or go on where an earlier call was interrupted.

    Under `accelerate launch` or `torchrun` the processes share every batch, and the result is that of one process up
    to rounding.

    Args:
        recipe: what to train.
        folder: of the run: recipe, checkpoint, loss curve (data and picture), previews, and the model.
        device: see `privgen.hub.resolve_device`; `accelerate launch` chooses the device of each of its processes.
        stop_at: stop after this step; a later call goes on.
        distortion: makes what images go through between marking and reading:
            `privgen.attacks.training_distortion.training_distortion`. Only recipes that name distortions need it.

    Raises:
        UsageError: the folder holds a run of another recipe, a batch cannot be shared evenly, or the recipe's
            distortions cannot be made.
        PrivgenError: an input or the device is missing.
    """
    target = Path(folder)
    _check_inputs(recipe)
    distort = recipe.distortion(distortion)
    accelerator = _accelerator(device)
    if recipe.loop.batch_size % accelerator.num_processes:
        processes = accelerator.num_processes
        raise UsageError(f"{processes} processes cannot share batches of {recipe.loop.batch_size} evenly.")
    _check_same_run(recipe, target)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_text(target / RECIPE, dump_recipe(recipe), overwrite=True)
    # What a task prepares for all processes, such as encoded pictures, is made by the first and read by the others.
    with accelerator.main_process_first():
        task = recipe.task(distort)
    fit(task, recipe.loop, target, accelerator=accelerator, stop_at=stop_at, on_save=lambda: _draw_curve(target))
    return _result(recipe, target)


def export_average(
    recipe: Recipe,
    run: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    device: str = "auto",
    distortion: MakeDistortion | None = None,
) -> int:
    """Export the averaged weights of a run's last checkpoint, as the run itself does when it ends.

    Args:
        recipe: that the run was started by.
        run: its folder, which is only read.
        folder: where the model goes.
        device: see `privgen.hub.resolve_device`.
        distortion: as `train` takes it.

    Returns:
        Optimiser steps that the weights have seen.

    Raises:
        UsageError: the recipe's distortions cannot be made.
        PrivgenError: an input, the checkpoint or the device is missing, or the checkpoint is of another recipe.
    """
    _check_inputs(recipe)
    task = recipe.task(recipe.distortion(distortion))
    step = load_average(task, Path(run))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    task.to(resolve_device(device)).export(target)
    return step


def _check_inputs(recipe: Recipe) -> None:
    for field, usual in _INPUTS.items():
        what, kind = _OTHER_INPUTS.get((recipe.kind, field), usual)
        path = getattr(recipe.model, field, None)
        if path is None or (recipe.kind, field) in _OPTIONAL:
            continue
        if not (path.is_file() if field == "latents" else path.is_dir()):
            raise PrivgenError(
                f"There is no {what} in {path}; make one with `privgen train {kind}` or set {recipe.kind}.{field}."
            )


def _draw_curve(folder: Path) -> None:
    curve = folder / "loss.jsonl"
    if curve.exists() and read_curve(curve):
        draw_loss_curve(curve, folder / "loss.png")


def _accelerator(device: str) -> Accelerator:
    place = None if device == "auto" else resolve_device(device)
    if place is not None and place.type == "cuda" and place.index is not None:
        torch.cuda.set_device(place)
    # Several processes on CPUs only are found by accelerate if it is told so.
    cpu = place.type == "cpu" if place is not None else not torch.accelerator.is_available()
    # The others wait while the first process prepares data.
    return Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])


def _check_same_run(recipe: Recipe, folder: Path) -> None:
    if not (folder / RECIPE).exists():
        return
    found = differences(load_recipe(recipe.kind, folder / RECIPE), recipe)
    if found:
        raise UsageError(
            f"{folder} holds a run of another recipe ({'; '.join(found)}); choose another folder, or the values there."
        )


def _result(recipe: Recipe, folder: Path) -> Training:
    state = json.loads((folder / "checkpoint" / "state.json").read_text(encoding="utf-8"))
    curve = folder / "loss.jsonl"
    losses = read_curve(curve).get("loss", []) if curve.exists() else []
    return Training(recipe.kind, folder / "model", state["step"], recipe.loop.steps, losses[-1][1] if losses else None)
