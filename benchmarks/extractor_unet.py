"""Measure what the extractor's U-Net brings: read marks after regeneration with it, and with the filters alone.

python benchmarks/extractor_unet.py --n 128 --seed 0 [--json]
"""

import copy
import json
from collections.abc import Callable
from time import perf_counter
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from privgen.attacks.purification.regeneration import Rinsing
from privgen.data.scenes import PREVIEW_SEED
from privgen.diffusion.sampling import Sampling
from privgen.evaluation.watermark.generation import Generation, as_saved, draw_keys
from privgen.hub import load_extra, load_pipeline
from privgen.watermark.protocols import key_bits
from privgen.watermark.read.bits import weigh_bits
from privgen.watermark.read.p_values import p_values_of
from privgen.watermark.watermark import Watermark


BATCH = 16
TIMED = 20  # readings of a batch by each reader, in turn

Read = Callable[[Tensor], Tensor]


def figures(logits: Tensor, messages: Tensor) -> dict[str, float]:
    """Detection rates and bit accuracy of logits (N, n_bits) of images with these messages."""
    pairs = zip(weigh_bits(logits), messages, strict=True)
    p = np.array([p_values_of(read[None], message[None], "weighted")[0, 0] for read, message in pairs])
    right = ((logits > 0) == (messages > 0.5)).float().mean()
    return {
        "bit_accuracy": round(float(right), 4),
        "tpr_1e-3": round(float((p <= 1e-3).mean()), 4),
        "tpr_1e-6": round(float((p <= 1e-6).mean()), 4),
    }


def reading_ratio(images: Tensor, one: Read, other: Read) -> float:
    """The median ratio of the times that two readers take."""
    ratios = []
    for _ in range(TIMED):
        start = perf_counter()
        one(images)
        middle = perf_counter()
        other(images)
        ratios.append((middle - start) / (perf_counter() - middle))
    return round(float(np.median(ratios)), 2)


@click.command()
@click.option("--n", type=click.IntRange(1), default=128, show_default=True, help="Images.")
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--times", type=int, multiple=True, default=(0, 1, 2, 3, 4), show_default=True, help="Regenerations.")
@click.option("--json", "as_json", is_flag=True)
@torch.inference_mode()
def main(n: int, seed: int, times: tuple[int, ...], as_json: bool) -> None:
    """Print a row for each number of regenerations from timestep 60 of 1000."""
    pipe, watermark = load_pipeline("mini"), Watermark.from_pretrained("mini")
    extractor: Any = load_extra("extractor", "mini")
    filters = copy.deepcopy(extractor)
    filters.unet = None
    filters.reset_whitening()  # it was measured with the U-Net; for random keys, p-values hold without it
    generation = Generation(pipe, seed, sampling=Sampling(batch_size=BATCH))
    keys = draw_keys(n, torch.Generator().manual_seed(seed), "unet")
    logits: dict[int, list[tuple[Tensor, Tensor]]] = {count: [] for count in times}
    for first in tqdm(range(0, n, BATCH), desc="images", unit="batch"):
        numbers = range(first, min(first + BATCH, n))
        with watermark.on(pipe, [keys[i] for i in numbers], carrier="latent"):
            images = generation.images(numbers)
        for count in times:
            generators = [torch.Generator().manual_seed(PREVIEW_SEED + 1000 * seed + i) for i in numbers]
            attacked = as_saved(Rinsing(strength=count, model=pipe, fit="whole")(images, generator=generators))
            logits[count].append((extractor(attacked), filters(attacked)))
    messages = key_bits(keys, extractor)
    rows = []
    for count, parts in logits.items():
        read, filtered = (figures(torch.cat(part), messages) for part in zip(*parts, strict=True))
        rows.append({"regenerations": count, "n": n, "seed": seed, "with_unet": read, "filters_alone": filtered})
    ratio = reading_ratio(images, extractor, filters)
    if as_json:
        click.echo(json.dumps({"rows": rows, "reading_time_ratio": ratio}, indent=2))
        return
    for row in rows:
        click.echo(
            f"{row['regenerations']} x  with the U-Net {row['with_unet']}  filters alone {row['filters_alone']}"
        )
    click.echo(f"reading takes {ratio} times as long")


if __name__ == "__main__":
    main()
