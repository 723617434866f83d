"""Put the models of training runs together into one folder such as privgen/models/mini.

    python benchmarks/assemble_mini.py --text-to-image runs/text-to-image --autoencoder runs/autoencoder \
        --extractor runs/extractor --token-language runs/token-language --classifier runs/classifier --overwrite

The result is an ordinary Diffusers folder with the networks of this package in privgen/. Weights are stored in half
precision and load in single precision. A run that has not ended gives the averaged weights of its last checkpoint.
With --overwrite, only the parts whose runs you name are replaced; all else stays as it is, the README too.
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from privgen.data.scenes import PREVIEW_SEED, draw_scene
from privgen.errors import PrivgenError
from privgen.models.aligner import Aligner
from privgen.models.classifier import SceneClassifier
from privgen.models.extractor import Extractor
from privgen.training.recipes import Recipe, load_recipe
from privgen.training.run import RECIPE, export_average
from privgen.watermark.networks import CONFIG
from privgen.watermark.write.mark_spec import NETWORK_CARRIERS


MINI = Path(__file__).parents[1] / "privgen" / "models" / "mini"
TEXT_TO_IMAGE = {name: name for name in ("model_index.json", "scheduler", "text_encoder", "tokenizer", "unet", "vae")}
EXTRACTOR, LATENT_MAPPER, TOKEN_MAPPER = "privgen/extractor", "privgen/latent_mapper", "privgen/token_mapper"
# For each kind of run, what its model folder holds, and where this goes. A run that trains parts of other runs further
# comes after these.
PARTS = {
    "text-to-image": TEXT_TO_IMAGE,
    "token-language": {**TEXT_TO_IMAGE, TOKEN_MAPPER: TOKEN_MAPPER},
    "autoencoder": {"vae": "vae"},
    "extractor": {"extractor": EXTRACTOR, "latent_mapper": LATENT_MAPPER},
    "token-mapper": {"extractor": EXTRACTOR, "latent_mapper": LATENT_MAPPER, "token_mapper": TOKEN_MAPPER},
    "aligner": {"aligner": "privgen/aligner"},
    "denoiser": {".": "privgen/denoiser"},
    "classifier": {"classifier": "privgen/classifier"},
}
# For each kind of run, what its model folder must hold.
ESSENTIAL = {
    "text-to-image": "unet",
    "token-language": TOKEN_MAPPER,
    "autoencoder": "vae",
    "extractor": "extractor",
    "token-mapper": "token_mapper",
    "aligner": "aligner",
    "denoiser": ".",
    "classifier": "classifier",
}
JUDGES = {"extractor": Extractor, "aligner": Aligner, "classifier": SceneClassifier}
# Few numbers on which whole messages depend; they are stored in single precision.
EXACT = ("mean", "whitening")
SCENES = 64
# Logits of unmarked scenes lie around zero, so rounding turns the sign of one in a few thousand.
MAY_CHANGE = 2e-3

Command = TypeVar("Command", bound=Callable[..., Any])


def take_run(kind: str, run: Path, staging: Path, *, checkpoint: bool) -> str:
    """Replace the parts that a run has trained, and say what was taken."""
    with exported(kind, run, checkpoint=checkpoint) as (model, source):
        found = {name: place for name, place in PARTS[kind].items() if (model / name).exists()}
        if ESSENTIAL[kind] not in found:
            raise PrivgenError(f"{model} holds no {kind}; name the folder of a run of `privgen train {kind}`.")
        if kind == "autoencoder" and (staging / "vae").is_dir():
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
    """A folder with the model of a run, and its description."""
    if not run.is_dir():
        raise PrivgenError(f"There is no run in {run}.")
    if (run / "model").is_dir() and not checkpoint:
        yield run / "model", f"{run}/model"
        return
    with tempfile.TemporaryDirectory() as folder:
        recipe = load_recipe(kind, run / RECIPE if (run / RECIPE).is_file() else None)
        if kind == "text-to-image":  # one scene is enough, because nothing is trained any more
            few = replace(recipe.model, scenes=1, latents=Path(folder) / "latents.safetensors")
            recipe = Recipe(kind, few, recipe.loop)
        step = export_average(recipe, run, Path(folder) / "model", device="cpu")
        yield Path(folder) / "model", f"{run}/checkpoint, averaged weights of step {step} of {recipe.loop.steps}"


def check_same_encoder(new: Path, old: Path) -> None:
    """Refuse an autoencoder whose encoder is not the one that the text-to-image model was trained with."""
    ours, theirs = (load_file(folder / "diffusion_pytorch_model.safetensors") for folder in (new, old))
    names = [name for name in ours.keys() | theirs.keys() if name.startswith(("encoder.", "quant_conv."))]
    if not all(
        name in ours and name in theirs and torch.equal(ours[name].half(), theirs[name].half()) for name in names
    ):
        raise PrivgenError(
            "The autoencoder has another encoder than the one that the text-to-image model was trained with; name a "
            "run that has trained its decoder only."
        )


def patterns(folder: Path) -> Tensor:
    """The patterns of a model's marks, scaled to the same strength for all models."""
    stored = load_file(folder / LATENT_MAPPER / "diffusion_pytorch_model.safetensors")["patterns"].float()
    return stored / stored.square().sum(dim=0).mean().sqrt()


def same(some: Tensor, others: Tensor) -> bool:
    """Whether two tensors are equal up to the rounding of half precision."""
    return some.shape == others.shape and torch.allclose(some, others, rtol=0.01, atol=1e-3)


def halve(folder: Path) -> str:
    """Store a network in half precision, unless that changes its decisions, and say what was done."""
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
    """The decisions of a network about scenes that no training run draws, one row for each scene."""
    said = network(torch.from_numpy(np.stack([draw_scene(PREVIEW_SEED + i).pixels for i in range(SCENES)])))
    if isinstance(said, Tensor):
        return said > 0
    return torch.cat([said.nouns > 0, said.colour.argmax(1, keepdim=True), said.pattern.argmax(1, keepdim=True)], 1)


def set_carrier(staging: Path, carrier: str | None) -> None:
    """Set the carrier that the model recommends, or keep it, and check that its mapper is there."""
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
    """Remove the paths of training runs, and let everybody read the files."""
    for config in [*staging.rglob("config.json"), staging / "model_index.json"]:
        entries = json.loads(config.read_text(encoding="utf-8"))
        if entries.pop("_name_or_path", None) is not None:
            config.write_text(json.dumps(entries, indent=2) + "\n", encoding="utf-8")
    for path in staging.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def assemble(
    runs: Mapping[str, Path], output: Path, *, checkpoint: tuple[str, ...], carrier: str | None, overwrite: bool
) -> None:
    """Make the folder. The old one stays until the new one is complete and has been loaded."""
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
    """Replace the parts of a folder that runs have trained."""
    renewed = {"token-language", "token-mapper"} & set(runs)
    old_patterns = None if renewed or not (staging / TOKEN_MAPPER).is_dir() else patterns(staging)
    for kind in PARTS:
        if kind in runs:
            click.echo(f"{kind}: {take_run(kind, runs[kind], staging, checkpoint=kind in checkpoint)}")
    if old_patterns is not None and not same(old_patterns, patterns(staging)):
        raise PrivgenError(
            "The token mapper that is there writes other patterns than this extractor reads; name --token-language or "
            "--token-mapper as well."
        )
    if not (staging / "model_index.json").is_file():
        raise PrivgenError("There is no text-to-image model to put the others beside; name --text-to-image.")
    set_carrier(staging, carrier)
    tidy(staging)
    for file in sorted(staging.rglob("*.safetensors")):
        click.echo(f"{file.parent.name}: stored {halve(file.parent)}")
    StableDiffusionPipeline.from_pretrained(staging, safety_checker=None, use_safetensors=True)


def report(folder: Path) -> None:
    """Print the sizes of the parts of a folder, in megabytes."""
    parts = [path for path in sorted(folder.iterdir()) if path.name != "privgen"]
    for part in [*parts, *sorted((folder / "privgen").glob("*")), folder]:
        files = [part] if part.is_file() else [path for path in part.rglob("*") if path.is_file()]
        size = sum(path.stat().st_size for path in files)
        click.echo(f"{size / 1e6:8.2f} MB  {part.relative_to(folder.parent)}")


def run_option(kind: str, note: str = "") -> Callable[[Command], Command]:
    """An option that names a run of a kind."""
    text = f"Run of `privgen train {kind}`{note and ', '}{note}."
    return click.option(f"--{kind}", type=click.Path(path_type=Path), help=text)


@click.command(help=__doc__.split("\n")[0])
@run_option("text-to-image")
@run_option("token-language", "instead of --text-to-image")
@run_option("autoencoder", "with the same encoder")
@run_option("extractor")
@run_option("aligner")
@run_option("denoiser")
@run_option("token-mapper")
@run_option("classifier")
@click.option(
    "--checkpoint",
    type=click.Choice(list(PARTS)),
    multiple=True,
    help="Take the last checkpoint of this run, although it has exported a model. Repeatable.",
)
@click.option(
    "--carrier",
    type=click.Choice(NETWORK_CARRIERS),
    help="Carrier that the model recommends; by default the old one.",
)
@click.option("--output", "-o", type=click.Path(path_type=Path), default=MINI, help="Folder of the model.")
@click.option("--overwrite", is_flag=True, help="Replace parts of a folder that exists.")
def main(checkpoint: tuple[str, ...], carrier: str | None, output: Path, overwrite: bool, **runs: Path | None) -> None:
    named = {name.replace("_", "-"): run for name, run in runs.items() if run is not None}
    missing = [kind for kind in checkpoint if kind not in named]
    if missing:
        raise click.UsageError(f"--checkpoint {missing[0]} needs the run: name --{missing[0]}.")
    try:
        assemble(named, output, checkpoint=checkpoint, carrier=carrier, overwrite=overwrite)
    except PrivgenError as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
