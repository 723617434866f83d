"""How many photographs a core marks in a second, and how many hours of a core a million take.

    python benchmarks/bulk.py --images 8

Each photograph is read from a JPEG file, marked, and written as a JPEG file. The baseline is Pillow, which reads and
writes the same files and marks nothing. Times are processor time, so that other work on the machine does not count.
"""

import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch
from PIL import Image, ImageOps

import privgen
from privgen import Key, Watermark


WAYS: dict[str, dict[str, Any] | None] = {
    "Pillow": None,
    "tile, not read back": {"carrier": "tile", "check": False},
    "tile": {"carrier": "tile"},
    "tile+latent": {"carrier": "tile+latent"},
}
"""What is measured: the options of `Watermark.embed`; None marks nothing."""

PHOTOS = Path(privgen.__file__).parent / "data" / "photos" / "heldout"

state: dict[str, Any] = {}


def start(key: Key, together: Any) -> None:
    """Make a process ready: one thread, networks loaded. `together` is the barrier at which processes meet."""
    torch.set_num_threads(1)
    state["key"], state["mark"], state["together"] = key, Watermark.from_pretrained("mini"), together
    state["mark"].embed(Image.effect_noise((256, 256), 50).convert("RGB"), key)


def seconds(way: str, files: list[Path]) -> float:
    """Processor time of this process for some files. Begins when all processes are there."""
    options, mark, key = WAYS[way], state["mark"], state["key"]
    state["together"].wait()
    begin = time.process_time()
    for file in files:
        image = Image.open(file).convert("RGB") if options is None else mark.embed(Image.open(file), key, **options)
        image.save(BytesIO(), "JPEG", quality=95)
    return time.process_time() - begin


def photographs(folder: Path, side: int, count: int) -> list[Path]:
    """Packaged photographs, cut to squares and scaled."""
    paths = []
    for number, source in enumerate(sorted(PHOTOS.glob("*.jpg"))[:count]):
        paths.append(folder / f"{side}-{number}.jpg")
        with Image.open(source) as image:
            ImageOps.fit(image.convert("RGB"), (side, side)).save(paths[-1], quality=95)
    return paths


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--images", type=click.IntRange(1), default=8, show_default=True, help="Photographs a process marks.")
@click.option("--side", "sides", type=click.IntRange(64), multiple=True, default=(512, 1024), show_default=True)
@click.option("--processes", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True)
def main(images: int, sides: tuple[int, ...], processes: tuple[int, ...]) -> None:
    found = []
    with TemporaryDirectory() as place:
        for side in sides:
            files = photographs(Path(place), side, images)
            for count in processes:
                found += measure(side, files, count)
    click.echo(json.dumps(found, indent=2))


def measure(side: int, files: list[Path], processes: int) -> list[dict[str, object]]:
    """One row for each way. Every process marks all files, at the same time as the others."""
    spawn, rows, baseline = multiprocessing.get_context("spawn"), [], 0.0
    with ProcessPoolExecutor(processes, spawn, start, (Key.new("alice"), spawn.Barrier(processes))) as pool:
        for way in WAYS:
            used = sum(pool.map(seconds, [way] * processes, [files] * processes))
            each = used / (len(files) * processes)
            baseline = baseline or each
            rows.append(
                {
                    "pixels": side,
                    "processes": processes,
                    "way": way,
                    "images_per_second_per_core": round(1 / each, 2),
                    "times_the_baseline": round(each / baseline, 1),
                    "core_hours_for_a_million": round(1e6 * each / 3600),
                }
            )
    return rows


if __name__ == "__main__":
    main()
