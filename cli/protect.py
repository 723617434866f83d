"""``privgen protect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from privgen.cli import options
from privgen.cli.errors import EXIT_FAILED
from privgen.cli.output import echo, say_others, write
from privgen.errors import printable


if TYPE_CHECKING:
    from privgen.io.metadata import Keeping
    from privgen.protection.method import Method
    from privgen.protection.protect_files import ProtectedFile


METHODS = ("shield", "shift", "encoder", "advdm", "mist", "sds", "aspl", "universal", "noise")
"""The names of `privgen.protection.registry.METHODS`, which a test compares, so that help need not import it."""


@click.command(
    epilog=options.examples(
        "privgen protect photo.jpg -o protected",
        "privgen protect photos -o protected --psnr 34 --format same",
        "privgen protect photos -o protected --method encoder --steps 50 --autoencoder madebyollin/taesd",
        "privgen protect photos -o protected --method advdm --model stable-diffusion-v1-5/stable-diffusion-v1-5",
        "privgen protect photos -o protected --check",
    )
)
@options.images()
@options.output(
    required=True,
    metavar="DIR",
    help="Folder for the protected images; it must not hold the inputs. Or, for one image, the file to write.",
)
@click.option("--method", type=click.Choice(METHODS), default="shield", show_default=True, help="See above.")
@click.option(
    "--psnr",
    type=click.FloatRange(20, 60),
    default=36,
    show_default=True,
    metavar="DB",
    help="Quality of the protected image; higher is fainter, and protects less.",
)
@click.option(
    "--steps",
    type=click.IntRange(0),
    show_default="what suits the method",
    help="Gradient steps for each image; not noise, and shield only with --toward.",
)
@click.option(
    "--size",
    type=click.IntRange(0),
    show_default="what suits the method",
    metavar="PIXELS",
    help="Short side at which the change is computed: the size at which you expect adversaries to train.",
)
@click.option(
    "--toward",
    type=click.Path(path_type=Path),
    metavar="IMAGE",
    help="shield, encoder: move the latents toward those of this image, instead of away from where they are.",
)
@click.option(
    "--network",
    type=click.Path(path_type=Path),
    show_default="the one that ships",
    metavar="DIR",
    help="shield, shift: folder of a network that `privgen train shield` or `train shift` has made.",
)
@click.option("--prompt", metavar="TEXT", help="advdm, mist, sds, aspl: what the images show.")
@click.option(
    "--autoencoder",
    "autoencoders",
    multiple=True,
    metavar="NAME",
    help="encoder, shield with --toward: folder or Hub id of an autoencoder whose latents to move; repeatable. By "
    "default the model's.",
)
@click.option(
    "--format",
    "kind",
    type=click.Choice(["png", "same"]),
    default="png",
    show_default=True,
    help="Format to write: PNG, which loses nothing, or that of the source where possible.",
)
@options.recursive()
@options.max_pixels()
@options.metadata()
@options.quality()
@click.option("--check", is_flag=True, help="Also test, on a model, whether the images are harder to learn from now.")
@options.seed()
@options.model()
@options.vae()
@options.device()
@options.dtype()
@options.json()
@options.overwrite()
def protect(
    images: tuple[Path, ...],
    output: Path,
    method: str,
    psnr: float,
    steps: int | None,
    size: int | None,
    toward: Path | None,
    network: Path | None,
    prompt: str | None,
    autoencoders: tuple[str, ...],
    kind: Literal["png", "same"],
    recursive: bool,
    max_pixels: int,
    metadata: Keeping,
    quality: int | None,
    check: bool,
    seed: int,
    model: str,
    vae: str | None,
    device: str,
    dtype: str,
    as_json: bool,
    overwrite: bool,
) -> None:
    """Slow down learning from photographs; it does not stop a patient LoRA, purification, or clean photos in the mix.

    The images change faintly, so that a model that is fine-tuned on them learns less. shield is one pass of a small
    network, and needs no model. shift moves the trajectory of a diffusion model. encoder, advdm, mist, sds and aspl
    are published attacks that follow the gradient of the model, image by image. universal (one pattern for all) and
    noise are controls.

    Images keep their size, transparency and precision. If a file cannot be read or written, the command names it, does
    the rest, and exits with code 1. If a run was interrupted, repeat it: it skips the images that it has made already.
    """
    options.check_quality(quality, kind, output)
    from privgen.hub import Placement
    from privgen.io.batches import BatchOptions
    from privgen.protection.protect_files import protect_files
    from privgen.protection.protection import Protection
    from privgen.protection.surrogate import Surrogate

    settings = {"steps": steps, "size": size, "toward": toward, "network": network, "prompt": prompt}
    chosen = _method(method, {name: value for name, value in settings.items() if value is not None})
    surrogate = Surrogate(model, vae, autoencoders, Placement(device, dtype))
    if check:
        from privgen.evaluation.protection.check import can_check, check_protection
        from privgen.io.files import iter_image_files

        # Say now, not after the last image, if there can be no test.
        can_check(iter_image_files(images, recursive=recursive))
    result = protect_files(
        images,
        output,
        Protection(chosen, surrogate),
        psnr=psnr,
        seed=seed,
        batch=BatchOptions(
            overwrite=overwrite,
            progress=True,
            keep_format=kind == "same",
            metadata=metadata,
            quality=quality,
            recursive=recursive,
            max_pixels=max_pixels,
        ),
        report=lambda file: _report(file, as_json=as_json),
    )
    say_others(images, recursive=recursive)
    record: dict[str, Any] = {"method": result.method, "output": result.output}
    record |= {status: result.count(status) for status in ("done", "skipped", "failed")}
    readable = [Path(file.source) for file in result.files if file.status != "failed"]
    try:
        if check:
            record |= {"check": check_protection(readable, chosen, surrogate, psnr=psnr, seed=seed, output=output)}
    finally:
        echo({**record, **({"files": result.files} if as_json else {})}, as_json=as_json)
    if result.count("failed"):
        raise click.exceptions.Exit(EXIT_FAILED)


def _method(name: str, settings: dict[str, Any]) -> Method:
    """A method with the settings that the user gave."""
    from dataclasses import fields

    from privgen.protection.registry import method_class

    kind = method_class(name)
    known = {field.name for field in fields(kind)}
    if strange := [f"--{setting}" for setting in settings if setting not in known]:
        raise click.UsageError(f"The method {name} does not take {', '.join(strange)}.")
    try:
        return kind(**settings)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def _report(file: ProtectedFile, *, as_json: bool) -> None:
    """Say what became of a file: its figures on standard output, errors and notes on standard error."""
    if file.error:
        text = file.error if file.source in file.error else f"{file.source}: {file.error}"
        write(printable(f"Error: {text}"), err=True)
    for note in file.notes:
        write(printable(f"{file.source}: {note}"), err=True)
    if not as_json and file.status != "failed":
        figures = f"PSNR {file.psnr:.1f} dB, SSIM {file.ssim or float('nan'):.3f}, " if file.psnr is not None else ""
        if file.visible_de_p99 is not None:
            figures += f"visible difference {file.visible_de_p99:.1f}, {file.seconds:.1f} s"
        write(printable(f"{file.source}: {figures or file.status}"), err=True)
