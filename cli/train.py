"""``privgen train``."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from privgen.cli import options
from privgen.cli.groups import Group
from privgen.cli.output import echo


@click.group(
    cls=Group, epilog=options.examples("privgen train vae -o runs/vae", "accelerate launch -m privgen train diffusion")
)
def train() -> None:
    """Train models from recipes.

    A run that was interrupted goes on when the command is repeated. Its folder holds the recipe, the checkpoint, the
    loss curve (loss.jsonl, loss.png), previews, and the model. Several devices: `accelerate launch -m privgen
    train ...`; several processes on CPUs: `torchrun --nproc-per-node N -m privgen train ...`.
    """


def _options(kind: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The options that all kinds of models share."""
    decorators = [
        click.option(
            "--recipe",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="TOML file to train by, also privgen:recipes/NAME.toml; by default the one that mini was trained by.",
        ),
        options.output(default=Path("runs") / kind, metavar="DIR", help="Folder of the run."),
        click.option("--steps", type=click.IntRange(1), help="Optimiser steps: short for --set loop.steps=N."),
        click.option(
            "--set",
            "changes",
            multiple=True,
            metavar="TABLE.FIELD=VALUE",
            help=f"Change a field of the recipe, such as loop.batch_size=32; tables: {kind}, loop; repeatable.",
        ),
        click.option("--stop-at", type=click.IntRange(1), help="Stop after this step, to go on another time."),
        options.device(),
        options.json(),
    ]

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        for decorator in reversed(decorators):
            command = decorator(command)
        return command

    return decorate


@train.command(
    epilog=options.examples("privgen train vae", "privgen train vae -o runs/small --set vae.channels=[8,16,32,64]")
)
@_options("vae")
def vae(**chosen: Any) -> None:
    """Train the autoencoder between pictures and latents."""
    _train("vae", **chosen)


@train.command(
    epilog=options.examples(
        "privgen train diffusion",
        "privgen train diffusion --steps 2000 -o runs/try",
        "privgen train diffusion --immiscible -o runs/immiscible",
    )
)
@_options("diffusion")
@click.option(
    "--immiscible",
    is_flag=True,
    show_default=False,
    help="Give every image of a batch noise that lies near it: short for --set diffusion.immiscible=true.",
)
@click.option(
    "--learn-variance",
    is_flag=True,
    help="Learn the variance of the reverse steps too, for DDPM sampling: short for --set "
    "diffusion.learn_variance=true.",
)
def diffusion(immiscible: bool, learn_variance: bool, changes: tuple[str, ...], **chosen: Any) -> None:
    """Train the text-to-image model in the latents of a trained autoencoder."""
    if immiscible:
        changes = (*changes, "diffusion.immiscible=true")
    if learn_variance:
        changes = (*changes, "diffusion.learn_variance=true")
    _train("diffusion", changes=changes, **chosen)


@train.command(
    epilog=options.examples(
        "privgen train extractor",
        "privgen train extractor --recipe privgen:recipes/extractor-further.toml -o runs/further",
        "privgen train extractor --recipe privgen:recipes/extractor-unet.toml -o runs/unet",
    )
)
@_options("extractor")
def extractor(**chosen: Any) -> None:
    """Train the extractor that reads marks, with the mapper that writes them into latents.

    The marks are written into the latents of a trained autoencoder. The recipe says which distortions they are to
    survive.
    """
    _train("extractor", **chosen)


@train.command(
    epilog=options.examples("privgen train aligner", "privgen train aligner -o runs/short --set aligner.views=1024")
)
@_options("aligner")
def aligner(**chosen: Any) -> None:
    """Train the aligner that reads marks in images that were cut out or turned.

    It needs a trained extractor, and a text-to-image model that knows the language of tokens. Marked images are made
    first, once: about a quarter of an hour.
    """
    _train("aligner", **chosen)


@train.command(epilog=options.examples("privgen train token", "privgen train token -o runs/short --steps 500"))
@_options("token")
def token(**chosen: Any) -> None:
    """Teach a trained text-to-image model the language of tokens.

    A token has a word for each cell of the canvas, which says what pattern to lay over it. The patterns of messages
    are those of a trained extractor.
    """
    _train("token", **chosen)


@train.command(
    epilog=options.examples("privgen train mapper", "privgen train mapper -o runs/short --set mapper.vectors=8")
)
@_options("mapper")
def mapper(**chosen: Any) -> None:
    """Train the mapper from messages to text tokens, and the extractor with it.

    It needs a trained text-to-image model and starts from a trained extractor.
    """
    _train("mapper", **chosen)


@train.command(epilog=options.examples("privgen train classifier", "privgen train classifier --set loop.seed=1"))
@_options("classifier")
def classifier(**chosen: Any) -> None:
    """Train the classifier by which generated scenes are judged."""
    _train("classifier", **chosen)


@train.command(
    epilog=options.examples(
        "privgen train denoiser",
        "privgen train denoiser -o runs/longer --steps 6000",
        "privgen purify photo.png -o pure --model runs/denoiser/model",
    )
)
@_options("denoiser")
def denoiser(**chosen: Any) -> None:
    """Train the unconditional denoiser by which images are purified."""
    _train("denoiser", **chosen)


def _train(
    kind: str,
    recipe: Path | None,
    output: Path,
    steps: int | None,
    changes: tuple[str, ...],
    stop_at: int | None,
    device: str,
    as_json: bool,
) -> None:
    from accelerate import PartialState

    from privgen.attacks.training_distortion import training_distortion
    from privgen.training.recipes import load_recipe
    from privgen.training.run import train as run

    if steps is not None:
        changes = (*changes, f"loop.steps={steps}")
    loaded = load_recipe(kind, recipe, changes)
    result = run(loaded, output, device=device, stop_at=stop_at, distortion=training_distortion)
    if PartialState().is_main_process:
        echo(result, as_json=as_json)
