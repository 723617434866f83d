"""``privgen purify``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from privgen.cli import options
from privgen.cli.attack import attack_and_report


if TYPE_CHECKING:
    from privgen.io.metadata import Keeping


METHODS = ("diffpure", "gridpure", "impress", "regeneration", "rinsing", "vae")
"""Names of the attacks that purify with a diffusion model."""


@click.command(
    epilog=options.examples(
        "privgen purify photo.png -o pure",
        "privgen purify photos -o pure --method diffpure --strength 150 --mode ode",
        "privgen purify photos -o pure --method gridpure --strength 20 --t-star 10",
        "privgen purify photos -o pure --full",
        'privgen purify cat.png -o pure --method regeneration --strength 100 --prompt "a cat on a blue background"',
        "privgen purify photos -o pure --method rinsing --model stable-diffusion-v1-5/stable-diffusion-v1-5",
    )
)
@options.images()
@options.output(required=True, metavar="DIR", help="Folder for the purified images, or a PNG file.")
@click.option("--method", type=click.Choice(METHODS), default="diffpure", show_default=True, help="See above.")
@click.option(
    "--strength",
    type=float,
    show_default="100 for diffpure and impress, 15 for gridpure, 60 for regeneration, 4 for rinsing, 1 for vae",
    help="Noise in steps of 1000 for diffpure and regeneration; for the others, how many times or steps.",
)
@click.option(
    "--mode",
    type=click.Choice(["ddpm", "ode", "sde"]),
    show_default="ddpm",
    help="diffpure: how noise is taken away.",
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
    help="diffpure: denoising steps.",
)
@click.option("--repeats", type=click.IntRange(1), show_default="1", help="diffpure: how often to purify.")
@click.option(
    "--t-star",
    type=click.IntRange(1, 1000),
    show_default="10",
    help="gridpure: noise of each time, in steps of 1000.",
)
@click.option(
    "--blend",
    type=click.FloatRange(0, 1, max_open=True),
    show_default="0.1",
    help="gridpure: fraction of the image that each time keeps.",
)
@click.option(
    "--tile",
    type=click.IntRange(2),
    show_default="what the model was trained on",
    help="gridpure: side of the tiles in pixels.",
)
@click.option(
    "--t",
    type=click.IntRange(1, 1000),
    show_default="60",
    help="rinsing: noise of each time, in steps of 1000.",
)
@click.option("--prompt", metavar="TEXT", help="regeneration, rinsing: what the images show.")
@click.option(
    "--guidance-scale",
    type=click.FloatRange(0),
    show_default="7.5",
    help="regeneration, rinsing: scale of classifier-free guidance, with a prompt.",
)
@click.option(
    "--stride",
    type=click.IntRange(1, 1000),
    show_default="20",
    help="regeneration, rinsing: longest denoising step, in steps of 1000.",
)
@click.option(
    "--full",
    "fit",
    flag_value="tiles",
    help="Purify overlapping tiles at full size, instead of a small copy of a large image.",
)
@options.recursive()
@options.max_pixels()
@options.metadata()
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
    strength: float | None,
    mode: Literal["ddpm", "ode", "sde"] | None,
    space: Literal["pixel", "latent"] | None,
    steps: int | None,
    repeats: int | None,
    t_star: int | None,
    blend: float | None,
    tile: int | None,
    t: int | None,
    prompt: str | None,
    guidance_scale: float | None,
    stride: int | None,
    fit: Literal["tiles"] | None,
    recursive: bool,
    max_pixels: int,
    metadata: Keeping,
    seed: int,
    model: str,
    device: str,
    dtype: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Remove marks and perturbations from images with a diffusion model.

    The methods are attacks of `privgen attack`. diffpure adds noise once and takes it away. gridpure does so gently,
    many times, in overlapping tiles, for images of any size. impress looks for a close image that the
    model's autoencoder keeps as it is. regeneration adds noise in a text-to-image model's latents; rinsing does that
    several times. vae encodes and decodes.

    If an image has more pixels than the model's, a small copy is purified, and the change is enlarged and added to the
    image. Size and fine detail stay, and so do marks and protections that lie in the fine detail. --full purifies
    overlapping tiles at full size instead: it is slower, and takes more of both away. If the work will take more than
    about 10 seconds, the command says how long before it begins.

    Results are PNG files of the same size. If a file cannot be read, the command names it, does the rest, and exits
    with code 1. If a run was interrupted, repeat it: it skips the images that it has made already.
    """
    from dataclasses import fields

    from privgen.attacks import attack_class, get_attack
    from privgen.io.batches import BatchOptions

    parameters = {
        "strength": strength,
        "mode": mode,
        "space": space,
        "steps": steps,
        "repeats": repeats,
        "t_star": t_star,
        "blend": blend,
        "tile": tile,
        "t": t,
        "prompt": prompt,
        "guidance_scale": guidance_scale,
        "stride": stride,
        "fit": fit,
        "model": model,
        "device": device,
        "dtype": dtype,
    }
    given = {name: value for name, value in parameters.items() if value is not None}
    known = {field.name for field in fields(attack_class(method))}
    if strange := [f"--{name.replace('_', '-')}" for name in given if name not in known]:
        raise click.UsageError(f"The method {method} does not take {', '.join(strange)}.")
    try:
        attack = get_attack(method, **given)
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    batch = BatchOptions(
        overwrite=overwrite, progress=True, metadata=metadata, recursive=recursive, max_pixels=max_pixels
    )
    attack_and_report(attack, images, output, seed=seed, batch=batch, as_json=as_json)
