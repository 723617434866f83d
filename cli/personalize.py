"""``privgen personalize``."""

from __future__ import annotations

from pathlib import Path

import click

from privgen.cli import options
from privgen.cli.output import echo


ADVERSARIES = ("lora", "dreambooth", "textual-inversion", "prompt-embeds")
"""Names of the adversaries."""


@click.command(
    epilog=options.examples(
        "privgen personalize photos -o clean --word robot",
        "privgen personalize protected -o learnt --word robot --steps 120",
        "privgen personalize protected -o learnt --word robot --purify diffpure=100 --clean found",
        "privgen personalize photos -o learnt --adversary prompt-embeds --word robot",
        "privgen personalize photos -o learnt --word sks --model stable-diffusion-v1-5/stable-diffusion-v1-5",
    )
)
@options.images()
@options.output(required=True, metavar="DIR", help="Folder for what is learnt and for sheet.png.")
@click.option(
    "--adversary",
    "name",
    type=click.Choice(ADVERSARIES),
    default="lora",
    show_default=True,
    help="How to learn the subject.",
)
@click.option("--word", required=True, metavar="TEXT", help="The word that will stand for the subject in prompts.")
@click.option(
    "--prompt",
    "prompts",
    multiple=True,
    metavar="TEXT",
    show_default="what suits the model",
    help="What the images show, with {word} for the subject; give it several times for several prompts.",
)
@click.option(
    "--steps",
    type=click.IntRange(0),
    show_default="what suits adversary and model",
    help="Training steps.",
)
@click.option(
    "--purify",
    metavar="ATTACK",
    help="Attack the images first, as NAME=STRENGTH of privgen attack, to remove a protection.",
)
@click.option(
    "--clean",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of unprotected images of the subject, to learn from as well; they are not purified.",
)
@options.seed()
@options.model()
@options.vae()
@options.device()
@options.dtype()
@options.json()
@options.overwrite()
def personalize(
    images: tuple[Path, ...],
    output: Path,
    name: str,
    word: str,
    prompts: tuple[str, ...],
    steps: int | None,
    purify: str | None,
    clean: Path | None,
    seed: int,
    model: str,
    vae: str | None,
    device: str,
    dtype: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Test your own protection: teach a model the subject of images, as somebody would who wants to imitate them.

    Run it on your photographs and on the protected ones, and compare the two sheets. Use it only for images that are
    yours.

    The adversaries: lora trains small additions to the UNet (it needs `pip install 'privgen[adversaries]'`),
    dreambooth trains the whole UNet, textual-inversion learns a new word, and prompt-embeds learns vectors behind the
    encoded prompt.

    The folder gets sheet.png, with images of the same prompts and seeds before and after, and what was learnt:
    pytorch_lora_weights.safetensors, pipeline, learned_embeds.safetensors or prompt_embeds.safetensors. Diffusers
    loads all but the last.
    """
    from privgen.attacks.adversaries import adversary_class
    from privgen.attacks.adversaries.files import BaseModel, Material, personalize_files
    from privgen.cli.attack import parse
    from privgen.hub import Placement

    adversary = adversary_class(name)(word, prompts=prompts)
    attack = None if purify is None else parse(purify)
    result = personalize_files(
        adversary,
        Material(images, clean, attack),
        output,
        steps=steps,
        seed=seed,
        base=BaseModel(model, vae, Placement(device, dtype)),
        overwrite=overwrite,
    )
    echo(result, as_json=as_json)
