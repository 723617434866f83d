"""``privgen generate``, and what it shares with ``privgen watermark generate``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from privgen.cli import options
from privgen.cli.loading import quiet_loading
from privgen.cli.output import echo


def generation_options(command: Callable[..., None]) -> Callable[..., None]:
    """What both commands take."""
    decorators = [
        click.argument("prompt"),
        options.output(required=True, help="Image to write; with --n, a folder for the images."),
        click.option("--n", type=click.IntRange(1), default=1, show_default=True, help="Number of images."),
        click.option("--steps", type=click.IntRange(1, 1000), default=25, show_default=True, help="Denoising steps."),
        click.option(
            "--guidance-scale",
            type=click.FloatRange(0),
            show_default="3 for mini, else the model's own",
            help="How closely to follow the prompt: scale of classifier-free guidance.",
        ),
        click.option("--negative-prompt", metavar="TEXT", help="What the images shall not show."),
        options.seed(help="Seed of the first image; the others count up from it."),
        options.model(),
        options.device(),
        options.dtype(),
        options.json(),
        options.overwrite(),
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


@click.command(
    epilog=options.examples(
        'privgen generate "a cat on a blue background" -o cat.png',
        'privgen generate "a rocket on a red background" -o rockets --n 8 --seed 5',
        'privgen generate "a lighthouse" -o lighthouse.png --model stable-diffusion-v1-5/stable-diffusion-v1-5',
    )
)
@generation_options
def generate(as_json: bool, **chosen: Any) -> None:
    """Generate images of what PROMPT says.

    PNG files say in their text chunks what made them. A call for several images that was interrupted goes on where it
    stopped.
    """
    result = run(**chosen)
    echo(result if as_json else summary(result), as_json=as_json)


def run(output: Path, **chosen: Any) -> Any:
    """Call the library, with a progress bar where someone watches."""
    quiet_loading()
    from privgen.pipelines.generation import generate_files

    return generate_files(output=output, progress=True, **chosen)


def summary(result: Any) -> list[dict[str, object]]:
    """A row for each image."""
    mark = {"key": result.key, "carrier": result.carrier} if result.key else {}
    return [{"file": image.file, "seed": image.seed, "status": image.status, **mark} for image in result.images]
