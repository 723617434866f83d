"""``privgen adapt``."""

from pathlib import Path

import click

from privgen.cli import options
from privgen.cli.output import echo


@click.command(
    epilog=options.examples(
        "privgen adapt --model stable-diffusion-v1-5/stable-diffusion-v1-5 -o sd15",
        "privgen adapt --model stabilityai/stable-diffusion-xl-base-1.0 --vae madebyollin/sdxl-vae-fp16-fix -o sdxl",
        'privgen watermark generate "a lighthouse" --model sd15 --key alice -o lighthouse.png',
    )
)
@options.model()
@options.output(required=True, metavar="DIR", help="Folder for the networks; afterwards it stands for the model.")
@options.vae()
@click.option(
    "--photos",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Folder of photographs on which the decoder is measured.  [default: (those of the package)]",
)
@click.option(
    "--size",
    type=click.IntRange(min=64),
    metavar="PIXELS",
    help="Side of the square, or of a canvas with as many pixels, on which photographs are marked.  [default: (that "
    "of the model's images)]",
)
@options.device()
@options.json()
@options.overwrite()
def adapt(
    model: str,
    output: Path,
    vae: str | None,
    photos: Path | None,
    size: int | None,
    device: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Make the networks that write and read marks in the latents of a model.

    Nothing is trained, so it takes minutes. Each bit is a pattern of noise over the latents. In latents of 16 or
    more channels, it is read by what decoders make of it, which the command measures on photographs; in others, the
    model's own encoder reads it. The command marks other photographs, and prints how many bits it reads as they are
    and after JPEG. The folder holds these networks only, and names the model; give it to any command as --model.
    """
    from privgen.hub import Placement
    from privgen.training.watermark.adapt import CodeSize
    from privgen.training.watermark.adapt_model import adapt_model

    result = adapt_model(
        model,
        output,
        vae=vae,
        photos=photos,
        code=CodeSize(size=size),
        placement=Placement(device),
        overwrite=overwrite,
    )
    echo(result, as_json=as_json)
