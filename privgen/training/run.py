"""Train a model from a recipe."""

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
from privgen.training.checkpoints import load_average, read_step
from privgen.training.distortions import training_distortion
from privgen.training.loop import LOSSES, fit
from privgen.training.loss_curve import draw_loss_curve, read_curve
from privgen.training.recipes import Recipe, differences, dump_recipe, load_recipe


RECIPE = "recipe.toml"
"""Name of the recipe in the folder of a run."""

_PATIENCE = timedelta(hours=12)  # for which processes wait while the first one prepares data

_AUTOENCODER = ("autoencoder", "autoencoder")
_TEXT_TO_IMAGE = ("text-to-image model", "text-to-image")
_SPEAKER = ("text-to-image model with a token mapper", "token-language")
_EXTRACTOR = ("extractor with its patterns", "extractor")
_INPUTS = {
    "text-to-image": {"vae": _AUTOENCODER},
    "classifier": {"vae": _AUTOENCODER},
    "extractor": {"vae": _AUTOENCODER, "start": _EXTRACTOR, "model": _SPEAKER},
    "aligner": {"vae": _AUTOENCODER, "start": _EXTRACTOR, "model": _SPEAKER},
    "token-language": {"model": _TEXT_TO_IMAGE, "start": _SPEAKER, "networks": _EXTRACTOR},
    "shift": {"model": _TEXT_TO_IMAGE, "vae": _AUTOENCODER},
    "shield": {"start": ("shield", "shield")},
    "token-mapper": {"model": _TEXT_TO_IMAGE, "latents": ("cache of scenes", "text-to-image")},
}
"""For each kind, the fields of its recipe that name inputs: what an input is, and the kind whose training makes it."""


@dataclass(frozen=True)
class Training:
    """What a call of `train` has done.

    Attributes:
        kind: of model.
        model: folder with the averaged weights, in the form in which they are used.
        step: optimiser steps since the beginning of the run.
        steps: optimiser steps of the whole schedule.
        loss: mean over the steps of the last line of the loss curve; None if there is no line yet.
    """

    kind: str
    model: Path
    step: int
    steps: int
    loss: float | None


def train(
    recipe: Recipe, folder: str | os.PathLike[str], *, device: str = "auto", stop_at: int | None = None
) -> Training:
    """Train a model, or go on where an earlier call stopped or was interrupted.

    Under `accelerate launch` or `torchrun` the processes share each batch. The result is that of one process, up to
    rounding.

    Args:
        recipe: what to train.
        folder: of the run. It gets the recipe, the checkpoint, the loss curve (data and picture), the previews and the
            model.
        device: see `privgen.hub.resolve_device`. Under `accelerate launch` each process gets a device of its own.
        stop_at: stop after this step; a later call goes on.

    Raises:
        UsageError: the folder holds a run of another recipe, the processes cannot share a batch evenly, or the recipe
            names distortions that do not exist.
        PrivgenError: an input or the device is missing.
    """
    target = Path(folder)
    _check_inputs(recipe)
    accelerator = _accelerator(device)
    if recipe.loop.batch_size % accelerator.num_processes:
        processes = accelerator.num_processes
        raise UsageError(f"{processes} processes cannot share batches of {recipe.loop.batch_size} evenly.")
    _check_same_run(recipe, target)
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        write_text(target / RECIPE, dump_recipe(recipe), overwrite=True)
    # The first process makes what all need, such as encoded pictures, and the others read it.
    with accelerator.main_process_first():
        task = recipe.task()
    fit(task, recipe.loop, target, accelerator=accelerator, stop_at=stop_at, on_save=lambda: _draw_curve(target))
    curve = target / LOSSES
    losses = read_curve(curve).get("loss", []) if curve.exists() else []
    loss = losses[-1][1] if losses else None
    return Training(recipe.kind, target / "model", read_step(target), recipe.loop.steps, loss)


def export_average(
    recipe: Recipe, run: str | os.PathLike[str], folder: str | os.PathLike[str], *, device: str = "auto"
) -> int:
    """Export the averaged weights of a run's last checkpoint, as the run itself does at its end.

    Args:
        recipe: of the run.
        run: folder of the run; nothing in it changes.
        folder: where to write the model.
        device: see `privgen.hub.resolve_device`.

    Returns:
        The number of optimiser steps that the run had made.

    Raises:
        UsageError: the recipe names distortions that do not exist.
        PrivgenError: an input, the checkpoint or the device is missing, or the checkpoint belongs to another recipe.
    """
    _check_inputs(recipe)
    task = recipe.task()
    step = load_average(task, Path(run))
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    task.to(resolve_device(device)).export(target)
    return step


def _check_inputs(recipe: Recipe) -> None:
    """Refuse a recipe whose inputs are missing, before anything is written."""
    for field, (what, kind) in _INPUTS.get(recipe.kind, {}).items():
        path: Path | None = getattr(recipe.model, field)
        if path is not None and not (path.is_file() if field == "latents" else path.is_dir()):
            raise PrivgenError(
                f"There is no {what} in {path}; make one with `privgen train {kind}` or set {recipe.kind}.{field}."
            )
    if hasattr(recipe.model, "distortions") and hasattr(recipe.model, "distortion_scale"):
        training_distortion(recipe.model.distortions, recipe.model.distortion_scale)


def _draw_curve(folder: Path) -> None:
    """Draw the loss curve of a run, if it has a line already."""
    curve = folder / LOSSES
    if curve.exists() and read_curve(curve):
        draw_loss_curve(curve, folder / "loss.png")


def _accelerator(device: str) -> Accelerator:
    place = None if device == "auto" else resolve_device(device)
    if place is not None and place.type == "cuda" and place.index is not None:
        torch.cuda.set_device(place)
    # Accelerate finds several processes on CPUs only if it is told that there are CPUs only.
    cpu = place.type == "cpu" if place is not None else not torch.accelerator.is_available()
    return Accelerator(cpu=cpu, kwargs_handlers=[InitProcessGroupKwargs(timeout=_PATIENCE)])


def _check_same_run(recipe: Recipe, folder: Path) -> None:
    """Refuse a folder that holds a run of another recipe."""
    if not (folder / RECIPE).exists():
        return
    found = differences(load_recipe(recipe.kind, folder / RECIPE), recipe)
    if found:
        raise UsageError(
            f"{folder} holds a run of another recipe ({'; '.join(found)}); choose another folder, or the values there."
        )
