"""How much longer it takes to look for many keys in the parts of an image than for one.

python benchmarks/many_keys.py --keys 10000
"""

import json
import time
from collections.abc import Callable
from functools import partial

import click
import torch

from privgen.data.scenes import draw_scene
from privgen.evaluation.watermark.generation import draw_keys
from privgen.watermark.objects.read import Locator


def milliseconds(read: Callable[[], object], runs: int) -> float:
    """The shortest processor time of several runs."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        read()
        times.append(time.process_time() - start)
    return 1000 * min(times)


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--keys", "count", type=click.IntRange(2), default=10_000, show_default=True, help="How many keys.")
@click.option("--runs", type=click.IntRange(1), default=20, show_default=True, help="Readings; the shortest counts.")
def main(count: int, runs: int) -> None:
    torch.set_num_threads(1)
    keys = draw_keys(count, torch.Generator().manual_seed(0), "key")
    few, many = Locator(keys[:1]), Locator(keys)
    found = {}
    for side in (128, 512):
        pixels = torch.from_numpy(draw_scene(0, size=side).pixels)
        one, all_keys = (milliseconds(partial(reader, pixels), runs) for reader in (few, many))
        found[f"{side}_pixels"] = {"one_key_ms": round(one, 1), "many_keys_ms": round(all_keys, 1)}
        found[f"{side}_pixels"]["added_ms"] = round(all_keys - one, 1)
    click.echo(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
