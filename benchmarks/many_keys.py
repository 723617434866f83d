"""How much longer it takes to look for a registry of many keys than for one.

python benchmarks/many_keys.py --keys 10000
python benchmarks/many_keys.py --keys 10000 --kind whole --search 300
"""

import json
import resource
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click
import torch
from torch import Tensor

from privgen.data.scenes import draw_scene
from privgen.evaluation.watermark.generation import draw_keys
from privgen.io.images import load_image
from privgen.watermark.key import Key
from privgen.watermark.networks import Networks
from privgen.watermark.objects.read import Locator
from privgen.watermark.read.detection import Detector, DetectSpec
from privgen.watermark.tile.embed import mark_image
from privgen.watermark.tile.pattern import pattern_of


PHOTOS = Path(__file__).parents[1] / "privgen" / "data" / "photos" / "heldout"
Found = dict[str, dict[str, float]]


def milliseconds(readers: Sequence[Callable[[], object]], runs: int) -> list[float]:
    """The shortest processor time of several runs of each reader; they take turns."""
    times: list[list[float]] = [[] for _ in readers]
    for _ in range(runs):
        for reader, taken in zip(readers, times, strict=True):
            start = time.process_time()
            reader()
            taken.append(time.process_time() - start)
    return [1000 * min(taken) for taken in times]


def compared(few: Callable[[], object], many: Callable[[], object], runs: int) -> dict[str, float]:
    """What one key takes, what many take, and the difference, in milliseconds."""
    one, all_keys = milliseconds([few, many], runs)
    return {"one_key_ms": round(one, 1), "many_keys_ms": round(all_keys, 1), "added_ms": round(all_keys - one, 1)}


def parts(keys: Sequence[Key], runs: int) -> Found:
    """Marks of objects, in parts of images."""
    few, many = Locator(keys[:1]), Locator(keys)
    images = {f"{side}_pixels": torch.from_numpy(draw_scene(0, size=side).pixels) for side in (128, 512)}
    return {name: compared(partial(few, pixels), partial(many, pixels), runs) for name, pixels in images.items()}


def whole(keys: Sequence[Key], runs: int) -> Found:
    """Whole images: what `privgen watermark detect --registry` does for each."""
    start = time.process_time()
    many = Detector(Networks(), keys, every=False)
    found: Found = {"load": {"seconds": round(time.process_time() - start, 1)}}
    few = Detector(Networks(), keys[-1:])
    for name, pixels in photographs(keys[-1]).items():
        found[name] = compared(partial(few, [pixels]), partial(many, [pixels]), runs)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return found | {"memory": {"peak_mib": round(peak)}}


def photographs(key: Key) -> dict[str, Tensor]:
    """A photograph, the same with a mark, and that mirrored."""
    photo = load_image(PHOTOS / "gcompris-monuments-operahouse.jpg").pixels
    marked = mark_image(photo, pattern_of(key)).pixels
    return {"unmarked": photo, "marked": marked, "marked_and_mirrored": marked.flip(2)}


def search(keys: Sequence[Key]) -> Found:
    """A search for tiles in a photograph without a mark."""
    detector = Detector(Networks(), keys, DetectSpec(search=True, carrier="tile"), every=False)
    start = time.process_time()
    detector([photographs(keys[0])["unmarked"]])
    seconds = time.process_time() - start
    return {
        "search": {"keys": len(keys), "seconds": round(seconds, 1), "ms_each_key": round(1000 * seconds / len(keys))}
    }


@click.command(help=(__doc__ or "").split("\n")[0])
@click.option("--keys", "count", type=click.IntRange(2), default=10_000, show_default=True, help="How many keys.")
@click.option("--runs", type=click.IntRange(1), default=20, show_default=True, help="Readings; the shortest counts.")
@click.option("--kind", type=click.Choice(["whole", "parts"]), multiple=True, help="What is read; by default both.")
@click.option(
    "--search", "searched", type=click.IntRange(0), default=0, help="Also search for so many of the keys, once."
)
def main(count: int, runs: int, kind: tuple[str, ...], searched: int) -> None:
    torch.set_num_threads(1)
    keys = draw_keys(count, torch.Generator().manual_seed(0), "key")
    found = {}
    for name, measure in (("whole", whole), ("parts", parts)):
        if name in (kind or ("whole", "parts")):
            found[name] = measure(keys, runs)
    if searched:
        found["search"] = search(keys[:searched])
    click.echo(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
