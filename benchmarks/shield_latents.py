"""How far a shield moves held-out photographs in the latents of autoencoders, against noise of the same PSNR.

    python benchmarks/shield_latents.py --autoencoder taesd --autoencoder taesdxl
    python benchmarks/shield_latents.py --network runs/shield/model --autoencoder taesdxl --photos my/photos

Autoencoders are folders or Hub ids. Name one that the network was not trained on, to see what is left there. Prints
one JSON object; intervals are over photographs.
"""

import json
from pathlib import Path

import click

from privgen.evaluation.intervals import mean
from privgen.evaluation.protection.latents import latent_shifts
from privgen.evaluation.text_to_image.autoencoder import heldout_photos
from privgen.io.files import iter_image_files
from privgen.io.images import load_image
from privgen.models.autoencoder import load_autoencoder
from privgen.protection.method import PSNR
from privgen.protection.protection import Protection
from privgen.protection.shield import ShieldMethod
from privgen.protection.surrogate import at_most


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--network", type=click.Path(exists=True, file_okay=False), help="Another than the one that ships.")
@click.option("--autoencoder", "names", multiple=True, required=True, help="Folder or Hub id; repeatable.")
@click.option("--photos", type=click.Path(exists=True, path_type=Path), help="Folder of photographs.")
@click.option("--n", default=8, help="Photographs, evenly taken.")
@click.option("--side", default=256, help="Short side to which larger ones are scaled down.")
@click.option("--psnr", default=PSNR, help="Of the protected photographs, in dB.")
@click.option("--seed", default=0)
def main(
    network: str | None, names: tuple[str, ...], photos: Path | None, n: int, side: int, psnr: float, seed: int
) -> None:
    files = iter_image_files([photos or heldout_photos()])
    images = [at_most(load_image(file).pixels, side) for file in files[:: max(len(files) // n, 1)][:n]]
    results = Protection(ShieldMethod(network=network)).protect(images, psnr=psnr, seed=seed)
    autoencoders = {Path(name).name: load_autoencoder(name) for name in names}
    found = latent_shifts(images, [result.image for result in results], autoencoders, seed=seed)
    visible = mean([result.visible_de_p99 for result in results]).value
    record = {"n": len(images), "psnr": psnr, "side": side, "visible_de_p99": visible}
    record |= {name: shift.record() for name, shift in found.items()}
    click.echo(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
