"""``privgen watermark``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from privgen.cli import completion, options
from privgen.cli.generate import Request, takes_request
from privgen.cli.groups import Group
from privgen.cli.marks import carrier as carrier_option
from privgen.cli.marks import hint_detect, hint_locate
from privgen.cli.marks import payload as payload_option
from privgen.cli.watermark_detect import detect
from privgen.cli.watermark_embed import embed


if TYPE_CHECKING:
    from privgen.watermark.write.mark_spec import Carrier


@click.group(
    cls=Group,
    epilog=options.examples(
        "privgen key new alice",
        'privgen watermark generate "a cat on a blue background" --key alice -o cat.png',
        "privgen watermark embed photos --key alice -o marked",
        "privgen watermark detect cat.png marked --key alice",
    ),
)
def watermark() -> None:
    """Mark images with a key, and detect whose mark an image carries.

    A carrier writes the mark. The carrier `tile` adds a repeated pattern to the pixels; it needs no model. The carrier
    `latent` adds a pattern to the image's latents. The carrier `token` adds a learned word, which only the key's owner
    has, to the prompt late in denoising. `tile+latent` writes both in one image.
    """


@watermark.command(
    epilog=options.examples(
        'privgen watermark generate "a cat on a blue background" --key alice -o cat.png',
        'privgen watermark generate "a rocket on a red background" --key alice.key --carrier token -o rockets --n 8',
        'privgen watermark generate "a clock" --token alice.safetensors -o clock.png',
        'privgen watermark generate "a cat" --registry studio.db --key alice --issued-for "client 17" -o cats --n 4',
        'privgen watermark generate "a cat and a pineapple" --object cat=alice --object pineapple=bob -o two.png',
    )
)
@takes_request
@options.key(
    "Key file, or the name of a key: whose mark. With --object, the mark of all that is outside the objects.",
    required=False,
)
@click.option(
    "--object",
    "objects",
    multiple=True,
    metavar="NOUN=KEY",
    shell_complete=completion.keys_after_name,
    help="Mark the object that this word of the prompt names with a key; repeatable.",
)
@click.option(
    "--mask",
    "masks",
    multiple=True,
    metavar="NOUN=FILE",
    help="Image of the generated images' size that is light where the object is; by default the model's attention to "
    "the word says where it is. Repeatable.",
)
@click.option(
    "--token",
    "token_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the mark with this token of `privgen token`, not with the one that the model makes for the key.",
)
@carrier_option("the model's own choice")
@click.option(
    "--tau",
    type=click.FloatRange(0, 1000),
    show_default="what suits the carrier",
    help="The mark acts on timesteps up to this one, of 1000.",
)
@click.option(
    "--psnr",
    type=click.FloatRange(20, 60),
    show_default="42 for a tile, 31 to 37 inside objects",
    metavar="DB",
    help="Quality of tiles; higher is fainter.",
)
@payload_option()
@options.registry(
    "Issue an ID from this registry for each image, and write it as the payload. --key is then a key of the registry."
)
@options.issued_for("--issued-for")
@options.robust_steps()
def generate(
    request: Request,
    key: str | None,
    objects: tuple[str, ...],
    masks: tuple[str, ...],
    token_file: Path | None,
    carrier: Carrier | None,
    tau: float | None,
    psnr: float | None,
    payload: int | None,
    registry: Path | None,
    note: str | None,
    user: str | None,
    robust_steps: int,
) -> None:
    """Generate images of what PROMPT says that carry a key's mark, or in which objects carry marks of their own.

    With the same seed, they are the images of `privgen generate`, but for the mark.
    """
    if key is None and token_file is None and not objects:
        raise click.UsageError("Say whose mark: give --key, --token or --object.")
    if masks and not objects:
        raise click.UsageError("--mask needs --object: say whose the object is.")
    options.check_registry(registry, key, (note, user), excluded=bool(objects or token_file) or payload is not None)
    if registry is not None and key is not None:
        from privgen.watermark.write.mark_spec import MarkSpec

        spec = MarkSpec(carrier, psnr, tau=tau, robust_steps=robust_steps)
        request.run_issued(registry, key, (note, user), spec)
        hint_detect(request.output, str(registry), request.model, option="--registry")
        return
    owners, files = options.named(objects, "--object"), options.named(masks, "--mask")
    from privgen.watermark.key import load_key

    owner = None if key is None else load_key(key)
    from privgen.watermark.token import Token
    from privgen.watermark.write.mark_spec import KeyMark, MarkSpec

    token = None if token_file is None else Token.load(token_file)
    spec = MarkSpec(carrier, psnr, tau=tau, robust_steps=robust_steps, payload=payload)
    if owners:
        from privgen.watermark.objects.keys import ObjectKeys
        from privgen.watermark.objects.masks import open_mask

        keys = {noun: load_key(name) for noun, name in owners.items()}
        opened = {noun: open_mask(file) for noun, file in files.items()}
        request.run(mark=KeyMark(None, spec, token, ObjectKeys(keys, opened, owner, psnr, payload)))
        hint_locate(str(request.output), owners.values(), carrier)
        return
    request.run(mark=KeyMark(owner, spec, token))
    hint_detect(request.output, "KEY" if key is None else key, request.model)


watermark.add_command(embed)
watermark.add_command(detect)
