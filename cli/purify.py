"""``privgen purify``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from privgen.cli import options
from privgen.cli.attack import attack_and_report


METHODS = {
    "diffpure": "diffpure",
    "gridpure": "gridpure",
    "regenerate": "regeneration",
    "rinse": "rinsing",
    "vae": "vae",
}
"""Method on the command line: the attack's name."""


@click.command(
    epilog=options.examples(
        "privgen purify photo.png -o pure",
        "privgen purify photos -o pure --method diffpure --strength 150 --mode ode",
        "privgen purify photos -o pure --method gridpure --strength 20 --t 10",
        'privgen purify cat.png -o pure --method regenerate --strength 100 --prompt "a cat on a blue background"',
        "privgen purify photos -o pure --method rinse --model stable-diffusion-v1-5/stable-diffusion-v1-5",
    )
)
@click.argument("images", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="IMAGE_OR_FOLDER...")
@options.output(required=True, metavar="DIR", help="Folder for the purified images.")
@click.option("--method", type=click.Choice(list(METHODS)), default="diffpure", show_default=True, help="See above.")
@click.option(
    "--strength",
    type=float,
    show_default="100 for diffpure, 15 for gridpure, 60 for regenerate, 4 for rinse, 1 for vae",
    help="Noise in steps of 1000 for diffpure and regenerate; for the others, how many times.",
)
@click.option(
    "--mode",
    type=click.Choice(["ddpm", "ode", "sde"]),
    show_default="ddpm",
    help="diffpure: the way back from noise; sde needs torchsde.",
)
@click.option(
    "--space",
    type=click.Choice(["pixel", "latent"]),
    show_default="what suits the model",
    help="diffpure, gridpure: where noise is added.",
)
@click.option(
    "--steps",
    type=click.IntRange(1, 1000),
    show_default="what suits the mode",
    help="diffpure: steps of the way back.",
)
@click.option("--repeats", type=click.IntRange(1), show_default="1", help="diffpure: how often to purify.")
@click.option(
    "--t",
    type=click.IntRange(1, 1000),
    show_default="10 for gridpure, 60 for rinse",
    help="gridpure, rinse: noise of each time, in steps of 1000.",
)
@click.option(
    "--blend",
    type=click.FloatRange(0, 1, max_open=True),
    show_default="0.1",
    help="gridpure: share of the image that each time keeps.",
)
@click.option(
    "--tile",
    type=click.IntRange(2),
    show_default="what the model was trained on",
    help="gridpure: side of the tiles in pixels.",
)
@click.option("--prompt", metavar="TEXT", help="regenerate, rinse: what the images show.")
@click.option(
    "--guidance-scale",
    type=click.FloatRange(0),
    show_default="7.5",
    help="regenerate, rinse: scale of classifier-free guidance, with a prompt.",
)
@options.seed()
@options.model()
@options.device()
@options.dtype()
@options.json()
@options.overwrite()
def purify(
    images: tuple[Path, ...],
    output: Path,
    method: str,
    seed: int,
    as_json: bool,
    overwrite: bool,
    **chosen: Any,
) -> None:
    """Take marks and perturbations out of images with a diffusion model.

    Methods: diffpure adds noise once and takes it away; gridpure does so gently, many times, in overlapping tiles,
    for images of any size; regenerate adds noise in a text-to-image model's latents; rinse does that several times;
    vae encodes and decodes.

    Results are PNG files of the same size. A run that was interrupted goes on where it stopped. A file that cannot be
    read is named, the rest is done, and the exit code is 1.
    """
    from privgen.attacks import attack_class

    known = attack_class(METHODS[method])
    # Rounds of gridpure and rinse have noise of their own, each attack's by its paper's name.
    chosen["t_star" if method == "gridpure" else "t"] = chosen.pop("t")
    given = {name: value for name, value in chosen.items() if value is not None}
    strange = [name for name in given if name not in known.__dataclass_fields__]
    if strange:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in strange)
        raise click.UsageError(f"The method {method} does not take {names}.")
    try:
        attack = known(**given)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    attack_and_report(attack, images, output, seed=seed, as_json=as_json, overwrite=overwrite)
