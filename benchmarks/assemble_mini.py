"""Puts the models of training runs together into one folder such as privgen/models/mini.

    python benchmarks/assemble_mini.py --diffusion runs/diffusion --vae runs/vae --extractor runs/extractor \
        --token runs/token --classifier runs/classifier --overwrite

The result is an ordinary Diffusers folder with this package's networks in privgen/. Weights are stored in half
precision and load in single precision. A run that has not ended gives the averaged weights of its last checkpoint.
With --overwrite, whatever no run is named for stays as it is, the README too.
"""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from privgen.attacks.training_distortion import training_distortion
from privgen.data.scenes import PREVIEW_SEED, draw_scene
from privgen.errors import PrivgenError
from privgen.models.aligner import Aligner
from privgen.models.classifier import SceneClassifier
from privgen.models.extractor import Extractor
from privgen.training.recipes import Recipe, load_recipe
from privgen.training.run import RECIPE, export_average
from privgen.watermark.networks import CONFIG
from privgen.watermark.write.mark_spec import CARRIERS


MINI = Path(__file__).parents[1] / "privgen" / "models" / "mini"
TEXT_TO_IMAGE = {name: name for name in ("model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae")}
EXTRACTOR, LATENT_MAPPER, TOKEN_MAPPER = "privgen/extractor", "privgen/latent_mapper", "privgen/token_mapper"
# What a run's model folder holds, and where it goes. A run that trains others' parts further comes after them.
PARTS = {
    "diffusion": TEXT_TO_IMAGE,
    "token": {**TEXT_TO_IMAGE, TOKEN_MAPPER: TOKEN_MAPPER},
    "vae": {"vae": "vae"},
    "extractor": {"extractor": EXTRACTOR, "latent_mapper": LATENT_MAPPER},
    "mapper": {"extractor": EXTRACTOR, "latent_mapper": LATENT_MAPPER, "token_mapper": TOKEN_MAPPER},
    "aligner": {"aligner": "privgen/aligner"},
    "denoiser": {".": "privgen/denoiser"},
    "classifier": {"classifier": "privgen/classifier"},
}
# What makes a folder a model of that kind.
ESSENTIAL = {
    "diffusion": "unet",
    "token": TOKEN_MAPPER,
    "vae": "vae",
    "extractor": "extractor",
    "mapper": "token_mapper",
    "aligner": "aligner",
    "denoiser": ".",
    "classifier": "classifier",
}
JUDGES = {"extractor": Extractor, "aligner": Aligner, "classifier": SceneClassifier}
# A few numbers that a whole message depends on.
EXACT = ("mean", "whitening")
SCENES = 64
# Bits of unmarked scenes lie around zero, so that rounding turns one in a few thousand.
MAY_CHANGE = 2e-3


def take_run(kind: str, run: Path, staging: Path, *, checkpoint: bool) -> str:
    """Replace the parts that a run has trained; says what was taken."""
    with exported(kind, run, checkpoint=checkpoint) as (model, source):
        found = {name: place for name, place in PARTS[kind].items() if (model / name).exists()}
        if ESSENTIAL[kind] not in found:
            raise PrivgenError(f"{model} holds no {kind}; name the folder of a run of `privgen train {kind}`.")
        if kind == "vae" and (staging / "vae").is_dir():
            check_same_encoder(model / "vae", staging / "vae")
        for name, place in found.items():
            target = staging / place
            if target.is_dir():
                shutil.rmtree(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (model / name).is_dir() else shutil.copy)(model / name, target)
    return source


@contextmanager
def exported(kind: str, run: Path, *, checkpoint: bool) -> Iterator[tuple[Path, str]]:
    """A folder with a run's model, and what to call it."""
    if not run.is_dir():
        raise PrivgenError(f"There is no run in {run}.")
    if (run / "model").is_dir() and not checkpoint:
        yield run / "model", f"{run}/model"
        return
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(kind, run / RECIPE if (run / RECIPE).is_file() else None)
        if kind == "diffusion":  # its scenes are not needed any more
            few = replace(recipe.model, scenes=1, latents=Path(folder) / "latents.safetensors")
            recipe = Recipe(kind, few, recipe.loop)
        step = export_average(recipe, run, Path(folder) / "model", device="cpu", distortion=training_distortion)
        yield Path(folder) / "model", f"{run}/checkpoint, averaged weights of step {step} of {recipe.loop.steps}"


def check_same_encoder(new: Path, old: Path) -> None:
    """Refuse an autoencoder for whose latents the text-to-image model was not trained."""
    ours, theirs = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (new, old))
    names = [name for name in ours.keys() | theirs.keys() if name.startswith(("encoder.", "quant_conv."))]
    if not all(
        name in ours and name in theirs and torch.equal(ours[name].half(), theirs[name].half()) for name in names
    ):
        raise PrivgenError(
            "The autoencoder has another encoder than the one that the text-to-image model was trained in."
        )


def patterns(folder: Path) -> Tensor:
    """What marks are made of in a model's folder, whatever their strength."""
    stored = load_file(folder / LATENT_MAPPER / "diffusion_pytorch_model.safetensors")["patterns"].float()
    return stored / stored.square().sum(dim=0).mean().sqrt()


def same(some: Tensor, others: Tensor) -> bool:
    """Whether they are the same up to the rounding to half precision."""
    return some.shape == others.shape and torch.allclose(some, others, rtol=0.01, atol=1e-3)


def halve(folder: Path) -> str:
    """Store a network in half precision, unless that changes what it decides; says what it did."""
    (file,) = folder.glob("*.safetensors")
    whole = load_file(file)
    if all(value.dtype != torch.float32 for name, value in whole.items() if name not in EXACT):
        return "as it was"
    halves = {n: v.half() if v.dtype == torch.float32 and n not in EXACT else v for n, v in whole.items()}
    if not all(value.isfinite().all() for value in halves.values() if value.is_floating_point()):
        return "as it was, out of the range of half precision"
    judge = JUDGES.get(folder.name)
    before = None if judge is None else decisions(judge.from_pretrained(folder).eval())
    save_file(halves, file, metadata={"format": "pt"})
    if judge is None or before is None:
        return "half"
    changed = (decisions(judge.from_pretrained(folder).eval()) != before).float().mean().item()
    if changed <= MAY_CHANGE:
        return f"half, {changed:.2%} of decisions changed"
    save_file(whole, file, metadata={"format": "pt"})
    return f"as it was, half precision changes {changed:.2%} of decisions"


@torch.no_grad()
def decisions(network: Extractor | Aligner | SceneClassifier) -> Tensor:
    """What a network says of scenes that no training draws, one row a scene."""
    said = network(torch.from_numpy(np.stack([draw_scene(PREVIEW_SEED + i).pixels for i in range(SCENES)])))
    if isinstance(said, Tensor):
        return said > 0
    return torch.cat([said.nouns > 0, said.colour.argmax(1, keepdim=True), said.pattern.argmax(1, keepdim=True)], 1)


def set_carrier(staging: Path, carrier: str | None) -> None:
    """Keep or set the carrier that the model recommends, and see that its mapper is there."""
    file = staging / CONFIG
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if carrier is not None:
        config["default_carrier"] = carrier
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    chosen = config.get("default_carrier")
    if chosen is not None and not (staging / "privgen" / f"{chosen}_mapper").is_dir():
        raise PrivgenError(f"The default carrier is {chosen}, but there is no {chosen} mapper; choose with --carrier.")


def tidy(staging: Path) -> None:
    """Take out where things were trained, and let everybody read the rest."""
    for config in [*staging.rglob("config.json"), staging / "model_index.json"]:
        entries = json.loads(config.read_text(encoding="utf-8"))
        if entries.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    for path in staging.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def assemble(
    runs: Mapping[str, Path], output: Path, *, checkpoint: tuple[str, ...], carrier: str | None, overwrite: bool
) -> None:
    """Make the folder; until it is complete and has been loaded, what was there stays."""
    staging, old = (output.with_name(f".{output.name}.{name}") for name in ("new", "old"))
    shutil.rmtree(staging, ignore_errors=True)
    if old.exists() and not output.exists():  # killed between the two renames below
        old.rename(output)
    if output.exists() and not overwrite:
        raise PrivgenError(f"{output} exists; choose another folder, or pass --overwrite.")
    try:
        shutil.copytree(output, staging) if output.exists() else staging.mkdir(parents=True)
        fill(staging, runs, checkpoint=checkpoint, carrier=carrier)
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)
            output.rename(old)
        staging.rename(output)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    report(output)


def fill(staging: Path, runs: Mapping[str, Path], *, checkpoint: tuple[str, ...], carrier: str | None) -> None:
    """Put the runs' parts over what is there."""
    renewed = {"token", "mapper"} & set(runs)
    old_patterns = None if renewed or not (staging / TOKEN_MAPPER).is_dir() else patterns(staging)
    for kind in PARTS:
        if kind in runs:
            click.echo(f"{kind}: {take_run(kind, runs[kind], staging, checkpoint=kind in checkpoint)}")
    if old_patterns is not None and not same(old_patterns, patterns(staging)):
        raise PrivgenError(
            "The token mapper that is there writes other patterns than this extractor reads; name --token or --mapper "
            "as well."
        )
    if not (staging / "model_index.json").is_file():
        raise PrivgenError("There is no text-to-image model to put the others beside; name --diffusion.")
    set_carrier(staging, carrier)
    tidy(staging)
    for file in sorted(staging.rglob("*.safetensors")):
        click.echo(f"{file.parent.name}: stored {halve(file.parent)}")
    StableDiffusionPipeline.from_pretrained(staging, safety_checker=None, use_safetensors=True)


def report(folder: Path) -> None:
    """Print what lies in the folder, in megabytes."""
    parts = [path for path in sorted(folder.iterdir()) if path.name != "privgen"]
    for part in [*parts, *sorted((folder / "privgen").glob("*")), folder]:
        files = [part] if part.is_file() else [path for path in part.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        click.echo(f"{size / 1e6:8.2f} MB  {part.relative_to(folder.parent)}")


@click.command(help=__doc__.split("\n")[0])
@click.option("--diffusion", type=click.Path(path_type=Path), help="Run of `privgen train diffusion`.")
@click.option("--token", type=click.Path(path_type=Path), help="Run of `privgen train token`, instead of --diffusion.")
@click.option("--vae", type=click.Path(path_type=Path), help="Run of `privgen train vae`, with the same encoder.")
@click.option("--extractor", type=click.Path(path_type=Path), help="Run of `privgen train extractor`.")
@click.option("--aligner", type=click.Path(path_type=Path), help="Run of `privgen train aligner`.")
@click.option("--denoiser", type=click.Path(path_type=Path), help="Run of `privgen train denoiser`.")
@click.option("--mapper", type=click.Path(path_type=Path), help="Run of `privgen train mapper`.")
@click.option("--classifier", type=click.Path(path_type=Path), help="Run of `privgen train classifier`.")
@click.option(
    "--checkpoint",
    type=click.Choice(list(PARTS)),
    multiple=True,
    help="Take this run's last checkpoint although it has exported a model before; repeatable.",
)
@click.option("--carrier", type=click.Choice(CARRIERS), help="Default carrier; by default the one that was there.")
@click.option("--output", "-o", type=click.Path(path_type=Path), default=MINI, help="Folder of the model.")
@click.option("--overwrite", is_flag=True, help="Replace parts of a folder that exists.")
def main(checkpoint: tuple[str, ...], carrier: str | None, output: Path, overwrite: bool, **runs: Path | None) -> None:
    named = {kind: run for kind, run in runs.items() if run is not None}
    missing = [kind for kind in checkpoint if kind not in named]
    if missing:
        raise click.UsageError(f"--checkpoint {missing[0]} needs the run: name --{missing[0]}.")
    try:
        assemble(named, output, checkpoint=checkpoint, carrier=carrier, overwrite=overwrite)
    except PrivgenError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
