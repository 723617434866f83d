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
        'privgen generate "a clock" -o clocks --n 10 --amplify 1.3 --amplify-window 0 100 --reject-hallucinations 0.2',
    )
)
@generation_options
@click.option(
    "--amplify",
    "gamma",
    type=click.FloatRange(0, 10),
    metavar="GAMMA",
    help="Factor of the score while sampling, against hallucination; 1 changes nothing.",
)
@click.option(
    "--amplify-window",
    "window",
    type=click.FloatRange(0, 1000),
    nargs=2,
    metavar="LOW HIGH",
    show_default="0 1000",
    help="Timesteps, of 1000, to amplify at.",
)
@click.option(
    "--amplify-gate",
    "gate",
    type=click.Choice(["constant", "running_variance", "learned"]),
    show_default="constant",
    help="Amplify everywhere, where predictions change from step to step, or where the model's variance is large.",
)
@click.option(
    "--amplify-tangent",
    "eta",
    type=click.FloatRange(0, 10),
    metavar="ETA",
    help="Factor of the part of each step that is across the sample.",
)
@click.option(
    "--reject-hallucinations",
    "reject",
    type=click.FloatRange(0, 1, max_open=True),
    default=0.0,
    show_default=True,
    metavar="SHARE",
    help="Share of the images to leave out, those that the network itself finds least likely; their files are not "
    "written.",
)
def generate(
    as_json: bool,
    gamma: float | None,
    window: tuple[float, float] | None,
    gate: str | None,
    eta: float | None,
    **chosen: Any,
) -> None:
    """Generate images of what PROMPT says.

    PNG files say in their text chunks what made them. A call for several images that was interrupted goes on where it
    stopped.
    """
    given = {"gamma": gamma, "window": window, "gate": gate, "eta": eta}
    result = run(**_amplification({name: value for name, value in given.items() if value is not None}), **chosen)
    echo(result if as_json else summary(result), as_json=as_json)


def _amplification(given: dict[str, Any]) -> dict[str, Any]:
    if not given:
        return {}
    if "gamma" not in given and "eta" not in given:
        raise click.UsageError("Say how much to amplify: give --amplify or --amplify-tangent as well.")
    low, high = given.get("window", (0, 1000))
    if low > high:
        raise click.UsageError(f"--amplify-window is LOW HIGH, and {low:g} is above {high:g}; swap them.")
    quiet_loading()
    from privgen.hallucination.amplification import Amplification

    return {"amplification": Amplification(**given)}


def run(output: Path, **chosen: Any) -> Any:
    """Call the library, with a progress bar where someone watches."""
    quiet_loading()
    from privgen.pipelines.generation import generate_files

    return generate_files(output=output, progress=True, **chosen)


def summary(result: Any) -> list[dict[str, object]]:
    """A row for each image."""
    mark = {"key": result.key, "carrier": result.carrier} if result.key else {}
    return [{"file": image.file, "seed": image.seed, "status": image.status, **mark} for image in result.images]
