"""What JPEG files keep of marks and of protection if they are coded like their strongly compressed sources.

    python benchmarks/jpeg_sources.py --n 16

Packaged photographs that no network was trained on are saved as JPEG, then marked and protected as `--format same`
does, with the tables of the source and with `--quality 95`. Prints for each quality of the source how many marks are
found, how many of 48 bits are read (mean and fewest), the PSNR of the marked files, their size over that of their
sources, and the fraction of the change by `shield` at 36 dB that protected files hold.
"""

import json
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory

import click
from PIL import Image

from privgen import Key, Protection
from privgen.evaluation.text_to_image.autoencoder import heldout_photos
from privgen.evaluation.watermark.marking import evenly
from privgen.io.batches import BatchOptions
from privgen.io.files import iter_image_files
from privgen.io.images import load_image
from privgen.metrics.quality import psnr
from privgen.protection.protect_files import protect_files
from privgen.watermark.networks import Networks
from privgen.watermark.read.detect_files import detect_files
from privgen.watermark.write.embed_files import embed_files


def marks(sources: list[Path], out: Path, batch: BatchOptions, networks: Networks) -> dict[str, float]:
    """Mark photographs, and read what the files hold."""
    key = Key.new("alice")
    files = embed_files(sources, out, key, networks=networks, batch=batch).files
    written = iter_image_files([out])
    found = detect_files(written, [key], networks=networks)
    bits = [file.matches or 0 for file in files]
    pairs = [(load_image(a).pixels[None], load_image(b).pixels[None]) for a, b in zip(sources, written, strict=True)]
    return {
        "found": sum(file.detected for file in found),
        "bits, mean": round(mean(bits), 1),
        "bits, fewest": min(bits),
        "PSNR, dB": round(mean(float(psnr(marked, plain)) for plain, marked in pairs), 1),
        "size": round(mean(b.stat().st_size / a.stat().st_size for a, b in zip(sources, written, strict=True)), 2),
    }


def held(sources: list[Path], out: Path, batch: BatchOptions, protection: Protection) -> float:
    """Protect photographs, and return the mean fraction of the change that the files hold."""
    fractions = []
    for folder, how in ((out / "all", BatchOptions()), (out / "held", batch)):
        protect_files(sources, folder, protection, psnr=36.0, batch=how)
    for names in zip(sources, iter_image_files([out / "all"]), iter_image_files([out / "held"]), strict=True):
        plain, meant, there = (load_image(name).pixels for name in names)
        fractions.append(float(((there - plain) * (meant - plain)).sum() / (meant - plain).square().sum()))
    return mean(fractions)


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--n", type=click.IntRange(1), default=16, show_default=True, help="Photographs.")
def main(n: int) -> None:
    """Measure both, and print a line for each quality."""
    networks, protection = Networks("mini"), Protection.from_pretrained()
    for quality in (50, 75, 90):
        with TemporaryDirectory() as place:
            folder = Path(place)
            (folder / "photos").mkdir()
            for path in evenly(iter_image_files([heldout_photos()]), n):
                with Image.open(path) as image:
                    image.convert("RGB").save(folder / "photos" / f"{path.stem}.jpg", quality=quality)
            sources = iter_image_files([folder / "photos"])
            for wanted in (None, 95):
                batch, out = BatchOptions(keep_format=True, quality=wanted), folder / str(wanted)
                row = {"quality before": quality, "quality": wanted or "of the source", "n": len(sources)}
                row |= marks(sources, out / "marked", batch, networks)
                row["change held"] = round(held(sources, out, batch, protection), 2)
                click.echo(json.dumps(row))


if __name__ == "__main__":
    main()
