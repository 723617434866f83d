"""Whether p-values of the carrier `tile` are what they say, on images without a mark.

    python benchmarks/tile_nulls.py --readings 10000

Packaged photographs are read, as they are or after a crop or another attack, each for many random keys. Of the pairs
of an image and a key, the fraction whose p-value is at or below a rate must not exceed that rate. Prints one line for
each rate, with the interval that holds the true fraction in 95 % of cases, and the smallest p-values.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import click
import numpy as np
import torch
from scipy.stats import beta
from torch import Tensor
from tqdm import tqdm

from privgen.attacks import parse_attack
from privgen.io.images import load_image
from privgen.watermark.key import Key, Secret
from privgen.watermark.tile.pattern import Pattern, pattern_of
from privgen.watermark.tile.search import detect_tiles


RATES = (1e-1, 1e-2, 1e-3, 1e-4)
ATTACKS = (
    None,
    "crop=0.5",
    "jpeg=30",
    None,
    "rotation=10",
    "crop=0.25 then jpeg=50",
    "screenshot",
    "border",
    "blur=1",
)
PHOTOS = Path(__file__).parents[1] / "privgen/data/photos/heldout"


def images(seed: int) -> Iterator[tuple[str, Tensor]]:
    """Yield packaged photographs without end, with the attack that each went through."""
    generator = np.random.default_rng(seed)
    files = sorted(PHOTOS.glob("*.jpg"))
    number = 0
    while True:
        for place in generator.permutation(len(files)):
            attack, pixels = ATTACKS[number % len(ATTACKS)], load_image(files[place]).pixels
            if attack is not None:
                pixels = parse_attack(attack)(pixels[None], generator=torch.Generator().manual_seed(number))[0]
            yield attack or "as it is", pixels
            number += 1


def random_patterns(count: int, generator: np.random.Generator) -> list[Pattern]:
    """The patterns of random keys."""
    return [pattern_of(Key("random", Secret(generator.bytes(32)))) for _ in range(count)]


def interval(count: int, of: int) -> tuple[float, float]:
    """The Clopper-Pearson interval of a fraction, at 95 %."""
    low = float(beta.ppf(0.025, count, of - count + 1)) if count else 0.0
    return low, float(beta.ppf(0.975, count + 1, of - count)) if count < of else 1.0


@click.command(help=__doc__.split("\n")[0])
@click.option("--readings", type=click.IntRange(1), default=10_000, show_default=True, help="Pairs of image and key.")
@click.option("--keys", type=click.IntRange(1), default=200, show_default=True, help="That an image is read for.")
@click.option("--seed", type=int, default=1, show_default=True, help="Of keys, images and attacks.")
@click.option("--no-search", is_flag=True, help="Read marks where they were written only.")
@click.option("--json", "file", type=click.Path(dir_okay=False, path_type=Path), help="Write a record here.")
def main(readings: int, keys: int, seed: int, no_search: bool, file: Path | None) -> None:
    generator, start = np.random.default_rng([seed, 1]), time.perf_counter()
    found: list[tuple[float, str]] = []
    bar = tqdm(total=readings, unit="reading")
    for attack, pixels in images(seed):
        count = min(keys, readings - len(found))
        [matches] = detect_tiles([pixels], random_patterns(count, generator), search=not no_search, fpr=1e-12)
        found += [(match.p_value, attack) for match in matches]
        bar.update(count)
        if len(found) >= readings:
            break
    bar.close()
    p = np.array([value for value, _ in found])
    rates = {}
    for rate in RATES:
        count = int((p <= rate).sum())
        low, high = interval(count, len(p))
        rates[f"{rate:g}"] = {"count": count, "fraction": count / len(p), "ci95": [low, high]}
        click.echo(f"p <= {rate:g}: {count} of {len(p)}, {count / len(p):.2g} ({low:.2g} to {high:.2g})")
    smallest = sorted(found)[:5]
    click.echo(f"smallest: {', '.join(f'{value:.2g} ({attack})' for value, attack in smallest)}")
    seconds = time.perf_counter() - start
    click.echo(f"{seconds:.0f} s, {seconds / len(p) * 1000:.0f} ms a reading")
    if file:
        record = {"readings": len(p), "keys": keys, "seed": seed, "search": not no_search, "rates": rates}
        file.write_text(json.dumps(record | {"smallest": [value for value, _ in smallest]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
