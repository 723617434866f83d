"""Whether p-values of `watermark detect --search` are what they say, on images without a mark.

    python benchmarks/search_calibration.py --images 24 --keys 1000

Each image is searched for many random keys at once, and its smallest p-value is multiplied by the number of keys and
by `places_of`. The fraction of images at or below a rate must not exceed that rate. So the deep tail, in which marks
are found, is measured with few images. Prints one line for each rate, and the smallest values.
"""

import click
import numpy as np
import torch
from tqdm import tqdm

from privgen.attacks import parse_attack
from privgen.evaluation.watermark.generation import Generation
from privgen.hub import load_extra, load_pipeline
from privgen.models.aligner import Aligner
from privgen.models.family import Canvas
from privgen.watermark.read.bits import weigh_bits
from privgen.watermark.read.p_values import p_values_of
from privgen.watermark.read.search import places_of, search


RATES = (0.5, 0.3, 0.2, 0.1, 0.05)


@torch.no_grad()
def smallest(aligner: Aligner, image: torch.Tensor, messages: torch.Tensor, *, turned: bool) -> float:
    """The smallest p-value of an image (3, S, S), corrected for messages (K, n_bits) of 0 and 1 and for places."""
    logits, _ = search(aligner, image[None], 2.0 * messages - 1, turned=turned)
    p = [p_values_of(weigh_bits(row), message, "weighted") for row, message in zip(logits[0], messages, strict=True)]
    return min(1.0, float(np.min(p)) * len(messages) * places_of(Canvas.of_reader(aligner), turned))


@click.command(help=__doc__.split("\n")[0])
@click.option("--images", type=click.IntRange(1), default=24, show_default=True)
@click.option("--keys", type=click.IntRange(1), default=1000, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of images and keys.")
@click.option("--attack", help="That images go through before, such as degradation=0.5.")
@click.option("--turned", is_flag=True, help="Search for turned cut-outs instead of all else.")
def main(images: int, keys: int, seed: int, attack: str | None, turned: bool) -> None:
    generation = Generation(load_pipeline("mini", safety_checker=False), seed)
    generator = torch.Generator().manual_seed(seed)
    aligner, found = load_extra("aligner"), []
    for number in tqdm(range(images), unit="image"):
        messages = torch.randint(2, (keys, 48), generator=generator)
        image = generation.images([number])
        if attack:
            image = parse_attack(attack)(image, generator=torch.Generator().manual_seed(number))
        found.append(smallest(aligner, image[0], messages, turned=turned))
    values = np.sort(found)
    for rate in RATES:
        click.echo(f"at or below {rate:g}: {(values <= rate).mean():.3f} of {images} images")
    click.echo(
        f"smallest: {', '.join(f'{value:.3g}' for value in values[:5])}; by chance about {1 / (images + 1):.3g}"
    )


if __name__ == "__main__":
    main()
