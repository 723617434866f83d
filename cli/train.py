"""``privgen train``."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import click

from privgen.cli import completion, options
from privgen.cli.groups import Group
from privgen.cli.output import echo


@click.group(
    cls=Group,
    epilog=options.examples(
        "privgen train autoencoder -o runs/autoencoder", "accelerate launch -m privgen train text-to-image"
    ),
)
def train() -> None:
    """Train models from recipes.

    If a run is interrupted, repeat the command, and it goes on. The folder of a run holds the recipe, the checkpoint,
    the loss curve (loss.jsonl, loss.png), previews, and the model. To use several devices, run `accelerate launch -m
    privgen train ...`; to use several processes on CPUs, run `torchrun --nproc-per-node N -m privgen train ...`.
    """


@dataclass(frozen=True)
class Run:
    """What the options say that all kinds of models share.

    Attributes:
        kind: of model.
        recipe: file to train by; None is the recipe that ships for the kind.
        output: folder of the run.
        changes: fields of the recipe to set, such as "loop.steps=100".
        stop_at: step to stop after; None trains to the end.
        device: see `privgen.hub.resolve_device`.
        as_json: print the result as JSON.
    """

    kind: str
    recipe: Path | None
    output: Path
    changes: tuple[str, ...]
    stop_at: int | None
    device: str
    as_json: bool

    def start(self, *more_changes: str) -> None:
        """Train, and print the result.

        Args:
            *more_changes: further fields of the recipe to set.
        """
        from accelerate import PartialState

        from privgen.training.recipes import load_recipe
        from privgen.training.run import train as train_model

        recipe = load_recipe(self.kind, self.recipe, (*self.changes, *more_changes))
        result = train_model(recipe, self.output, device=self.device, stop_at=self.stop_at)
        if PartialState().is_main_process:
            echo(result, as_json=self.as_json)


def _trains(kind: str, *examples: str) -> Callable[[Callable[..., None]], click.Command]:
    """Make a function the command that trains a kind of model.

    The function gets the options that all kinds share as its first argument, a `Run`.
    """
    shared = [
        click.option(
            "--recipe",
            type=click.Path(path_type=Path),
            metavar="FILE",
            shell_complete=completion.recipes,
            help="TOML file to train by, also privgen:recipes/NAME.toml; by default the one that ships.",
        ),
        options.output(default=Path("runs") / kind, metavar="DIR", help="Folder of the run."),
        click.option("--steps", type=click.IntRange(1), help="Optimiser steps: short for --set loop.steps=N."),
        click.option(
            "--set",
            "changes",
            multiple=True,
            metavar="TABLE.FIELD=VALUE",
            help=f"Set a field of the recipe, such as loop.batch_size=32. Tables: {kind}, loop. Repeatable.",
        ),
        click.option("--stop-at", type=click.IntRange(1), help="Stop after this step, to go on another time."),
        options.device(),
        options.json(),
    ]

    def decorate(function: Callable[..., None]) -> click.Command:
        @wraps(function)
        def command(
            *,
            recipe: Path | None,
            output: Path,
            steps: int | None,
            changes: tuple[str, ...],
            stop_at: int | None,
            device: str,
            as_json: bool,
            **more: Any,
        ) -> None:
            if steps is not None:
                changes = (*changes, f"loop.steps={steps}")
            function(Run(kind, recipe, output, changes, stop_at, device, as_json), **more)

        for option in reversed(shared):
            command = option(command)
        return train.command(kind, epilog=options.examples(*examples))(command)

    return decorate


@_trains(
    "autoencoder",
    "privgen train autoencoder",
    "privgen train autoencoder -o runs/small --set autoencoder.channels=[8,16,32,64]",
)
def autoencoder(run: Run) -> None:
    """Train the autoencoder, which turns pictures into latents and back."""
    run.start()


@_trains(
    "text-to-image",
    "privgen train text-to-image",
    "privgen train text-to-image --steps 2000 -o runs/short",
    "privgen train text-to-image --immiscible -o runs/immiscible",
)
@click.option(
    "--immiscible",
    is_flag=True,
    show_default=False,
    help="Give each image of a batch noise that lies near it: short for --set text-to-image.immiscible=true.",
)
@click.option(
    "--learn-variance",
    is_flag=True,
    help="Learn the variance of the reverse steps too, for DDPM sampling: short for --set "
    "text-to-image.learn_variance=true.",
)
def text_to_image(run: Run, immiscible: bool, learn_variance: bool) -> None:
    """Train the text-to-image model in the latents of a trained autoencoder."""
    flags = {"immiscible": immiscible, "learn_variance": learn_variance}
    run.start(*(f"text-to-image.{name}=true" for name, given in flags.items() if given))


@_trains(
    "denoiser",
    "privgen train denoiser",
    "privgen train denoiser -o runs/longer --steps 6000",
    "privgen purify photo.png -o pure --model runs/denoiser/model",
)
def denoiser(run: Run) -> None:
    """Train the unconditional denoiser, which purifies images."""
    run.start()


@_trains("classifier", "privgen train classifier", "privgen train classifier --set loop.seed=1")
def classifier(run: Run) -> None:
    """Train the classifier that judges generated scenes."""
    run.start()


@_trains(
    "extractor",
    "privgen train extractor",
    "privgen train extractor --recipe privgen:recipes/extractor-further.toml -o runs/further",
    "privgen train extractor --recipe privgen:recipes/extractor-unet.toml -o runs/unet",
)
def extractor(run: Run) -> None:
    """Train the extractor, which reads marks, and the latent mapper.

    The mapper writes marks into the latents of a trained autoencoder, which you need first. The recipe says which
    distortions marks should survive.
    """
    run.start()


@_trains("aligner", "privgen train aligner", "privgen train aligner -o runs/short --set aligner.views=1024")
def aligner(run: Run) -> None:
    """Train the aligner, which reads marks in images that were cut out or turned.

    It needs a trained extractor, and a text-to-image model that knows the language of tokens. Marked images are made
    first, once, which takes about a quarter of an hour.
    """
    run.start()


@_trains("token-language", "privgen train token-language", "privgen train token-language -o runs/short --steps 500")
def token_language(run: Run) -> None:
    """Teach a trained text-to-image model the language of tokens.

    A token of this language has a word for each cell of the canvas, which says what pattern to lay over the cell. The
    patterns of messages are those of a trained extractor.
    """
    run.start()


@_trains(
    "token-mapper",
    "privgen train token-mapper",
    "privgen train token-mapper -o runs/short --set token-mapper.vectors=8",
)
def token_mapper(run: Run) -> None:
    """Train the mapper that turns messages into text tokens.

    It needs a trained text-to-image model, which stays as it is, and a trained extractor. mini's own mapper comes from
    `privgen train token-language` instead.
    """
    run.start()


@_trains(
    "shift",
    "privgen train shift",
    "privgen train shift -o runs/faint --set shift.psnr=40",
    "privgen train shift --set shift.model=path/to/model",
)
def shift(run: Run) -> None:
    """Train the network that shifts trajectories, for `privgen protect --method shift`.

    It learns which shift of an image's noise makes a frozen text-to-image model learn the image worse, within a
    budget in dB.
    """
    run.start()


@_trains(
    "shield",
    "privgen train shield",
    "privgen train shield --autoencoder madebyollin/taesd --autoencoder madebyollin/taesdxl -o runs/sd",
    "privgen protect photo.jpg -o protected --network runs/sd/model",
)
@click.option(
    "--autoencoder",
    "autoencoders",
    multiple=True,
    metavar="NAME",
    help="Folder or Hub id of an autoencoder whose latents to shift, or mini; repeatable. Short for --set "
    'shield.autoencoders=["NAME", ...].',
)
def shield(run: Run, autoencoders: tuple[str, ...]) -> None:
    """Train the network that protects photographs in one pass.

    It learns to shift the latents of autoencoders while the eye sees little of it, also after JPEG and resizing.
    The shipped one was trained on mini's autoencoder and on those of Stable Diffusion, SDXL, SD3 and FLUX; the recipe
    has mini's only, because it needs no download.
    """
    import json

    run.start(*([f"shield.autoencoders={json.dumps(autoencoders)}"] if autoencoders else []))
