"""Measure the marks of `privgen adapt` in real latent spaces, on held-out photographs at their own sizes.

Each photograph is resized to its canvas, as `Watermark.embed` does it, and marked in its latents. The change that
this makes is added to it at its own size, at one quality. The photographs with the most pixels are taken. What is read
is read from the files' pixels as they are, and after JPEG.

    python benchmarks/latent_spaces.py --vae taesd --vae taef1 --n 12 --json
"""

import json
import time
from pathlib import Path
from typing import Any

import click
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from privgen.attacks import JPEG
from privgen.diffusion.latents import decode, encode
from privgen.io.images import load_image
from privgen.io.residual import add_residual, at_psnr, to_canvas
from privgen.metrics.visibility import visible_change
from privgen.models.autoencoder import load_autoencoder
from privgen.models.family import Canvas
from privgen.training.watermark.adapt import PHOTOS, Adapted, CodeSize, adapt
from privgen.watermark.read.logits import read_logits
from privgen.watermark.write.loudness import loud_bits


READINGS = {"as_is": None, "jpeg_80": JPEG(80), "jpeg_50": JPEG(50)}


def largest(count: int) -> list[Path]:
    """The held-out photographs with the most pixels."""

    def pixels(path: Path) -> int:
        with Image.open(path) as image:
            return image.width * image.height

    return sorted(sorted((PHOTOS.parent / "heldout").glob("*.jpg")), key=pixels, reverse=True)[:count]


@torch.no_grad()
def mark(vae: Any, made: Adapted, size: int, pixels: Tensor, bits: Tensor, psnr: float) -> Tensor:
    """A photograph with a mark, as `Watermark.embed` makes it."""
    square = Canvas.of_vae(vae, size)
    own = made.latent_mapper.config.tiled
    canvas = to_canvas([pixels], square.of_aspect(*pixels.shape[1:])[0] if own else square.size)
    z = encode(vae, canvas)
    plain, quality = decode(vae, z), torch.tensor([psnr])

    def change(message: Tensor) -> Tensor:
        return decode(vae, z + made.latent_mapper(message, *z.shape[-2:])) - plain

    loud = loud_bits(bits, canvas, made.extractor, lambda message: at_psnr(canvas, change(message), quality))
    return add_residual(pixels, change(loud)[0], psnr=psnr, levels=255).pixels


def measure(folder: str, count: int, size: int, psnr: float) -> dict[str, Any]:
    """The figures of one autoencoder."""
    vae = load_autoencoder(folder).to(memory_format=torch.channels_last).requires_grad_(False)
    began = time.monotonic()
    made = adapt(vae, size, code=CodeSize(psnr=psnr))
    row: dict[str, Any] = {"vae": Path(folder).name, "n": count, "size": size, "psnr_db": psnr}
    row["seconds_adapt"] = round(time.monotonic() - began, 1)
    right: dict[str, list[float]] = {name: [] for name in (*READINGS, "unmarked")}
    margins: dict[str, list[float]] = {name: [] for name in right}
    seen, draws = [], torch.Generator().manual_seed(0)
    for path in tqdm(largest(count), desc=row["vae"]):
        pixels = load_image(path).pixels
        bits = torch.randint(0, 2, (1, made.extractor.config.n_bits), generator=draws).float()
        marked = mark(vae, made, size, pixels, bits, psnr)
        images = {name: marked if attack is None else attack(marked) for name, attack in READINGS.items()}
        for name, image in {**images, "unmarked": pixels}.items():
            margin = (2 * bits - 1) * read_logits([image], made.extractor)
            right[name].append(float((margin > 0).float().mean()))
            margins[name].append(float(margin.mean()))
        seen.append(float(visible_change(marked[None], pixels[None]).flatten().quantile(0.99)))
    row["bit_accuracy"] = {name: round(sum(each) / count, 4) for name, each in right.items()}
    row["worst_image"] = {name: round(min(each), 4) for name, each in right.items()}
    row["mean_logit"] = {name: round(sum(each) / count, 2) for name, each in margins.items()}
    row["visible_de_p99"] = round(float(torch.tensor(seen).median()), 2)
    return row


@click.command()
@click.option("--vae", "folders", multiple=True, required=True, help="Folder or Hub id of an autoencoder; repeatable.")
@click.option("--n", default=12, show_default=True, help="Photographs.")
@click.option("--size", default=512, show_default=True, help="Side of a square with as many pixels as a canvas.")
@click.option("--psnr", default=40.0, show_default=True, help="Quality of the marks, in dB.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object for each autoencoder.")
def main(folders: tuple[str, ...], n: int, size: int, psnr: float, as_json: bool) -> None:
    """Measure the marks of `privgen adapt` in real latent spaces."""
    for folder in folders:
        row = measure(folder, n, size, psnr)
        click.echo(json.dumps(row) if as_json else "\n".join(f"{name}: {value}" for name, value in row.items()))


if __name__ == "__main__":
    main()
