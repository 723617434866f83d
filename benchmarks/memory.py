"""Peak memory and seconds of marking, reading and protecting a large photograph.

    python benchmarks/memory.py
    python benchmarks/memory.py --megapixels 12 --threads 1 --job embed --json

The photograph is a packaged one, enlarged, with noise as of a sensor, as a JPEG file. Each command runs in a process
of its own, as a user would run it: Python, its imports and the networks count. The baselines "Pillow" only decode the
same file and encode it again. Processor seconds are those of all threads together.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory

import click
import numpy as np
from PIL import Image

from privgen.evaluation.text_to_image.autoencoder import heldout_photos
from privgen.watermark.key import Key


ASPECT = 1.5  # width over height
PHOTOGRAPH, PYTHON = "photo.jpg", (sys.executable, "-m", "privgen")
PILLOW = "from PIL import Image; Image.open('photo.jpg').save('pillow.{}', quality=95)"
WATCH = """
import json, resource, subprocess, sys, time
started = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=sys.stderr)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([used.ru_maxrss, time.perf_counter() - started, used.ru_utime + used.ru_stime]))
"""
JOBS = {
    "Pillow, JPEG to PNG": (sys.executable, "-c", PILLOW.format("png")),
    "Pillow, JPEG to JPEG": (sys.executable, "-c", PILLOW.format("jpg")),
    "embed": (*PYTHON, "watermark", "embed", PHOTOGRAPH, "--key", "alice.key", "-o", "marked"),
    "embed --format same": (*PYTHON, *f"watermark embed {PHOTOGRAPH} --key alice.key -o same --format same".split()),
    "detect": (*PYTHON, "watermark", "detect", "marked/photo.png", "--key", "alice.key"),
    "protect": (*PYTHON, "protect", PHOTOGRAPH, "-o", "protected"),
}

MAKES = {"embed": "marked", "embed --format same": "same", "protect": "protected"}


def photograph(megapixels: float) -> Image.Image:
    """A packaged photograph, enlarged, with some noise."""
    height = round((megapixels * 1e6 / ASPECT) ** 0.5)
    size = (round(ASPECT * height), height)
    with Image.open(min(heldout_photos().glob("*.jpg"))) as small:
        large = np.asarray(small.convert("RGB").resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
    large += np.random.default_rng(0).integers(-4, 5, large.shape[:2], dtype=np.int16)[..., None]
    return Image.fromarray(large.clip(0, 255).astype(np.uint8))


def measure(job: str, threads: int, folder: Path) -> dict[str, object]:
    """Run a command in the folder of the photograph, and say what it took."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    # A process inherits the peak memory of the one that started it, so a small one starts the command.
    call = [sys.executable, "-c", WATCH, *JOBS[job]]
    done = subprocess.run(call, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(f"{job} failed: {done.stderr}")
    peak, seconds, spent = json.loads(done.stdout.splitlines()[-1])
    return {
        "job": job,
        "threads": threads,
        "peak_mb": round(peak * (1 if sys.platform == "darwin" else 1024) / 1e6),
        "seconds": round(seconds, 1),
        "processor_seconds": round(spent, 1),
    }


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--megapixels", type=click.FloatRange(0.1, 80), default=24, show_default=True)
@click.option("--threads", "counts", type=click.IntRange(1), multiple=True, default=(1, 2), show_default=True)
@click.option(
    "--job", "jobs", multiple=True, type=click.Choice(tuple(JOBS)), default=tuple(JOBS), help="By default all."
)
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each run instead of a table.")
def main(megapixels: float, counts: tuple[int, ...], jobs: tuple[str, ...], as_json: bool) -> None:
    if not as_json:
        click.echo("| command | threads | peak memory, MB | seconds | processor seconds |\n|---|---|---|---|---|")
    with TemporaryDirectory() as name:
        folder = Path(name)
        Key.new("alice").save(folder / "alice.key")
        photograph(megapixels).save(folder / PHOTOGRAPH, quality=92)
        for threads in counts:
            for job in ["embed", *jobs] if "detect" in jobs and "embed" not in jobs else jobs:
                if made := MAKES.get(job):  # else the command would skip what it has made already
                    rmtree(folder / made, ignore_errors=True)
                row = measure(job, threads, folder)
                click.echo(json.dumps(row) if as_json else f"| {' | '.join(map(str, row.values()))} |")


if __name__ == "__main__":
    main()
